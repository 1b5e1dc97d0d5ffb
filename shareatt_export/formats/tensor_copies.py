"""Tensors of an output file, and the bytes of the input that they are copied from."""

import math
from dataclasses import dataclass

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

from .gguf_header import Header, TensorInfo

FloatRows = npt.NDArray[np.float32]  # [rows, length of a row]
RawRows = npt.NDArray[np.uint8]  # [rows, bytes of a row]


@dataclass(frozen=True)
class TensorCopy:
    """A tensor of the SA file. Its bytes are the last `n_bytes` of `origin`, usually all. `shape` is in ggml order."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    n_bytes: int
    origin: TensorInfo

    @property
    def skipped(self) -> int:
        """Number of bytes at the start of `origin` that are not copied."""
        return self.origin.n_bytes - self.n_bytes


def whole_copies(header: Header) -> tuple[TensorCopy, ...]:
    """Return a copy of every tensor of a file, in the order of the file."""
    return tuple(map(whole_copy, header.tensors.values()))


def whole_copy(info: TensorInfo) -> TensorCopy:
    """Return a copy of all bytes of a tensor, with its name."""
    return TensorCopy(info.name, info.shape, info.type, info.n_bytes, info)


def raw_rows(copy: TensorCopy) -> RawRows:
    """Map the bytes of a tensor as an export copies them, row by row; a bias is one row."""
    rows = math.prod(copy.shape[1:])
    return np.memmap(copy.origin.path, np.uint8, "r", copy.origin.offset + copy.skipped, (rows, copy.n_bytes // rows))


def float_rows(raw: RawRows, type: GGMLQuantizationType) -> FloatRows:
    """Decode rows of any tensor type to f32."""
    return np.asarray(gguf.dequantize(raw, type), np.float32)


def read_f32(tensor: TensorInfo | TensorCopy) -> FloatRows:
    """Read a tensor from its file and decode it to f32, row by row; a bias is one row."""
    copy = tensor if isinstance(tensor, TensorCopy) else whole_copy(tensor)
    return float_rows(raw_rows(copy), copy.type)
