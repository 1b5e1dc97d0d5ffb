"""Tensors of an output file and the bytes of the input that they are made of."""

import math
from dataclasses import dataclass

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

from .gguf_header import Header, TensorInfo


@dataclass(frozen=True)
class Copy:
    """A tensor of the SA file: the last bytes of a tensor of the input, mostly all. `shape` is in ggml order."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    n_bytes: int
    origin: TensorInfo

    @property
    def skipped(self) -> int:
        """Bytes of `origin` before those."""
        return self.origin.n_bytes - self.n_bytes


def copies(header: Header) -> tuple[Copy, ...]:
    """Every tensor of a file, as it stands there."""
    return tuple(map(whole, header.tensors.values()))


def whole(info: TensorInfo) -> Copy:
    return Copy(info.name, info.shape, info.type, info.n_bytes, info)


Values = npt.NDArray[np.float32]  # [rows, length of a row]


Raw = npt.NDArray[np.uint8]  # [rows, bytes of a row]


def raw_tensor(copy: Copy) -> Raw:
    """The bytes of a tensor as an export would copy them, row by row; a bias is one row."""
    rows = math.prod(copy.shape[1:])
    return np.memmap(copy.origin.path, np.uint8, "r", copy.origin.offset + copy.skipped, (rows, copy.n_bytes // rows))


def decoded(raw: Raw, type: GGMLQuantizationType) -> Values:
    return np.asarray(gguf.dequantize(raw, type), np.float32)
