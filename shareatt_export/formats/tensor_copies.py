"""Tensors of an output file and the bytes of the input that they are made of."""

import math
from dataclasses import dataclass

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

from .gguf_header import Header, TensorInfo


@dataclass(frozen=True)
class TensorCopy:
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


def whole_copies(header: Header) -> tuple[TensorCopy, ...]:
    """Every tensor of a file, as it stands there."""
    return tuple(map(whole_copy, header.tensors.values()))


def whole_copy(info: TensorInfo) -> TensorCopy:
    return TensorCopy(info.name, info.shape, info.type, info.n_bytes, info)


FloatRows = npt.NDArray[np.float32]  # [rows, length of a row]


RawRows = npt.NDArray[np.uint8]  # [rows, bytes of a row]


def raw_rows(copy: TensorCopy) -> RawRows:
    """The bytes of a tensor as an export would copy them, row by row; a bias is one row."""
    rows = math.prod(copy.shape[1:])
    return np.memmap(copy.origin.path, np.uint8, "r", copy.origin.offset + copy.skipped, (rows, copy.n_bytes // rows))


def float_rows(raw: RawRows, type: GGMLQuantizationType) -> FloatRows:
    return np.asarray(gguf.dequantize(raw, type), np.float32)
