"""Tensors of an output file, and the bytes of the input that they are copied from."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

from .gguf_header import Header, TensorInfo

FloatRows = npt.NDArray[np.float32]  # [rows, length of a row]
RawRows = npt.NDArray[np.uint8]  # [rows, bytes of a row]


Cuts = tuple[tuple[int, int], ...]  # first and last + 1, one after the other in the output
# types for columns that are not whole blocks: nearly lossless for what was quantised before, or of single numbers
RECODED = (GGMLQuantizationType.Q8_0, GGMLQuantizationType.F16)


@dataclass(frozen=True)
class TensorCopy:
    """A tensor of the SA file, whose bytes are those of `origin`, or parts of them. `shape` is in ggml order.

    `rows`: the rows of `origin` that it has, and `columns`: the bytes of each of these rows, in the order of the
    output; None for all. A bias is one row. If `origin` has another type, its rows are encoded in `type` first.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    origin: TensorInfo
    rows: Cuts | None = None
    columns: Cuts | None = None

    @property
    def recoded(self) -> bool:
        """Whether the tensor is encoded anew, in another type."""
        return self.type != self.origin.type

    @cached_property
    def n_bytes(self) -> int:
        """Number of bytes of the tensor in the SA file."""
        return self._origin_row_bytes * self._n_rows if self.columns is None else _length(self.columns) * self._n_rows

    @property
    def _origin_rows(self) -> int:
        return math.prod(self.origin.shape[1:])

    @property
    def _origin_row_bytes(self) -> int:
        return self.origin.n_bytes // self._origin_rows

    @property
    def _n_rows(self) -> int:
        return self._origin_rows if self.rows is None else _length(self.rows)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield the first byte in `origin`, and the number of bytes, of each part, in the order of the output."""
        row_bytes, rows = self._origin_row_bytes, self.rows or ((0, self._origin_rows),)
        if self.columns is None:
            yield from ((row_bytes * first, row_bytes * (stop - first)) for first, stop in rows)
            return
        for first, stop in rows:
            for row in range(first, stop):
                yield from ((row_bytes * row + start, end - start) for start, end in self.columns)


def whole_copies(header: Header) -> tuple[TensorCopy, ...]:
    """Return a copy of every tensor of a file, in the order of the file."""
    return tuple(map(whole_copy, header.tensors.values()))


def whole_copy(info: TensorInfo) -> TensorCopy:
    """Return a copy of all bytes of a tensor, with its name."""
    return TensorCopy(info.name, info.shape, info.type, info)


def rows_of(info: TensorInfo, name: str, cuts: Cuts) -> TensorCopy:
    """Return a copy of some rows of a matrix, or of some numbers of a vector (a bias)."""
    if cuts == ((0, info.shape[-1]),):
        return replace(whole_copy(info), name=name)
    n = _length(cuts)
    if len(info.shape) > 1:
        return TensorCopy(name, (*info.shape[:-1], n), info.type, info, rows=cuts)
    size = info.n_bytes // info.shape[0]
    return TensorCopy(name, (n,), info.type, info, columns=tuple((size * first, size * stop) for first, stop in cuts))


def columns_of(info: TensorInfo, name: str, cuts: Cuts) -> TensorCopy:
    """Return a copy of some columns of a matrix, in the first type of whose blocks they are whole ones.

    The types are that of the matrix, and RECODED.
    """
    if cuts == ((0, info.shape[0]),):
        return replace(whole_copy(info), name=name)
    places = [place for cut in cuts for place in cut]
    for type in (info.type, *RECODED):
        block, block_bytes = gguf.GGML_QUANT_SIZES[type]
        if not any(place % block for place in places):
            break
    columns = tuple((first // block * block_bytes, stop // block * block_bytes) for first, stop in cuts)
    return TensorCopy(name, (_length(cuts), *info.shape[1:]), type, info, columns=columns)


def raw_rows(copy: TensorCopy) -> RawRows:
    """Return the bytes of a tensor as an export writes them, row by row; a bias is one row.

    Rows that lie one after the other in the file are mapped, not read.
    """
    return cut(origin_rows(copy), copy)


def origin_rows(copy: TensorCopy) -> RawRows:
    """Return all rows of the origin of a copy, in the type of the copy."""
    shape = math.prod(copy.origin.shape[1:]), copy.origin.n_bytes // math.prod(copy.origin.shape[1:])
    raw = np.memmap(copy.origin.path, np.uint8, "r", copy.origin.offset, shape)
    return gguf.quantize(float_rows(raw, copy.origin.type), copy.type).view(np.uint8) if copy.recoded else raw


def cut(raw: RawRows, copy: TensorCopy) -> RawRows:
    """Return the parts that a copy takes of all rows of its origin, which are in the type of the copy."""
    if copy.rows is not None:
        raw = _parts(raw, copy.rows)
    return raw if copy.columns is None else _parts(raw.T, copy.columns).T


def restored(copy: TensorCopy, raw: RawRows) -> FloatRows:
    """Return all rows of the origin of a copy whose columns were changed to `raw`, as numbers."""
    whole, place = origin_rows(copy).copy(), 0
    for first, stop in copy.columns or ((0, whole.shape[1]),):
        whole[:, first:stop] = raw[:, place : place + stop - first]
        place += stop - first
    return float_rows(whole, copy.type)


def _parts(raw: RawRows, cuts: Cuts) -> RawRows:
    parts = [raw[first:stop] for first, stop in cuts]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _length(cuts: Cuts) -> int:
    return sum(stop - first for first, stop in cuts)


def float_rows(raw: RawRows, type: GGMLQuantizationType) -> FloatRows:
    """Decode rows of any tensor type to f32."""
    return np.asarray(gguf.dequantize(raw, type), np.float32)


def read_f32(tensor: TensorInfo | TensorCopy) -> FloatRows:
    """Read a tensor from its file and decode it to f32, row by row; a bias is one row."""
    copy = tensor if isinstance(tensor, TensorCopy) else whole_copy(tensor)
    return float_rows(raw_rows(copy), copy.type)
