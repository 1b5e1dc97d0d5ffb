"""Read the header of a safetensors file, and check it against the format before any other program reads the file.

The file is an 8-byte length, a JSON header of this length with the dtype, shape and place of each tensor, and then the
tensors without gaps. The reader refuses what the format leaves open: gaps, bytes that belong to no tensor, names that
appear twice.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput, damaged
from ..formats.lfs_pointer import refuse_lfs_pointer

MAX_HEADER = 8 << 20  # bytes, enough for some 60,000 tensors; the library allows 100 MB, which take a gigabyte to parse
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64,
    "U64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file. `dtype` is a key of BITS, `offset` counts bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


def bad_file(path: Path, field: str, reason: str) -> BadInput:
    """Return the error for a damaged file of a checkpoint."""
    return damaged(path, field, reason, next_step="get the file again")


def read_json(path: Path, data: bytes, field: str = "JSON") -> dict[str, Any]:
    """Parse a JSON object. Raises BadInput if it is not one, or if a name appears twice in an object."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
            raise bad_file(path, field, f"'{twice[:64]}' appears twice")
        return found

    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise bad_file(path, field, f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise bad_file(path, field, "expected a JSON object")
    return found


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name. Raises BadInput if the header is damaged."""
    refuse_lfs_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise bad_file(path, "header length", f"{length} bytes, the file has {size}")
        if length > MAX_HEADER:
            raise bad_file(path, "header length", f"{length} bytes, at most {MAX_HEADER} are possible")
        data = file.read(length)
    if b"\0" in data:  # a sparse file declares a long header at no cost; refuse it before it is copied to a str
        raise bad_file(path, "header", "not JSON: it has NUL bytes")
    header = read_json(path, data, "header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise bad_file(path, "__metadata__", "expected an object with string values")
    tensors = [_stored_tensor(path, name, info, 8 + length) for name, info in header.items()]
    expected = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.n_bytes, tensor.name)):
        begin = tensor.offset - 8 - length
        if begin != expected:
            raise bad_file(path, f"tensor '{tensor.name}'", f"data_offsets: begins at {begin}, expected {expected}")
        expected += tensor.n_bytes
    if expected != size - 8 - length:
        raise bad_file(path, "data_offsets", f"the tensors have {expected} bytes, the file {size - 8 - length}")
    return {tensor.name: tensor for tensor in tensors}


def _stored_tensor(path: Path, name: str, info: Any, data_offset: int) -> StoredTensor:
    field = f"tensor '{name[:64]}'"
    if not isinstance(info, dict) or info.keys() != {"dtype", "shape", "data_offsets"}:
        raise bad_file(path, field, "expected dtype, shape and data_offsets")
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise bad_file(path, field, f"dtype: {str(dtype)[:32]} is not known")
    for key, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
            raise bad_file(path, field, f"{key}: expected non-negative integers")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise bad_file(path, field, "data_offsets: expected a begin and an end")
    begin, end = offsets
    if 8 * (end - begin) != math.prod(shape) * BITS[dtype]:
        raise bad_file(path, field, f"data_offsets: {end - begin} bytes are not {shape} of {dtype}")
    return StoredTensor(name, dtype, tuple(shape), data_offset + begin, end - begin)
