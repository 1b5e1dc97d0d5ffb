"""The header of a safetensors file, held against the format before anything else reads the file.

An 8-byte length, that many bytes of JSON (each tensor's dtype, shape and place), then the tensors without a gap. What
the format leaves open is refused: holes, bytes that belong to no tensor, names that stand twice.
"""

import json
import math
from pathlib import Path
from typing import Any

from ..errors import BadInput, damaged
from ..formats.lfs_pointer import refuse_lfs_pointer

MAX_HEADER = 8 << 20  # bytes; some 60,000 tensors
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64,
    "U64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


def bad_file(path: Path, field: str, reason: str) -> BadInput:
    return damaged(path, field, reason, next_step="get the file again")


def read_json(path: Path, data: bytes, field: str = "JSON") -> dict[str, Any]:
    """A JSON object in which no name stands twice. Raises BadInput."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
            raise bad_file(path, field, f"'{twice[:64]}' stands twice")
        return found

    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise bad_file(path, field, f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise bad_file(path, field, "expected a JSON object")
    return found


def tensor_names(path: Path) -> set[str]:
    """The names of the tensors of a safetensors file whose header is sound. Raises BadInput."""
    refuse_lfs_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise bad_file(path, "header length", f"{length} bytes, the file has {size}")
        if length > MAX_HEADER:
            raise bad_file(path, "header length", f"{length} bytes, at most {MAX_HEADER} are possible")
        header = read_json(path, file.read(length), "header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise bad_file(path, "__metadata__", "expected an object of texts")
    places = sorted((*_place(path, name, info), name) for name, info in header.items())
    expected = 0
    for begin, end, name in places:
        if begin != expected:
            raise bad_file(path, f"tensor '{name}'", f"data_offsets: begins at {begin}, expected {expected}")
        expected = end
    if expected != size - 8 - length:
        raise bad_file(path, "data_offsets", f"the tensors have {expected} bytes, the file {size - 8 - length}")
    return set(header)


def _place(path: Path, name: str, info: Any) -> tuple[int, int]:
    field = f"tensor '{name[:64]}'"
    if not isinstance(info, dict) or info.keys() != {"dtype", "shape", "data_offsets"}:
        raise bad_file(path, field, "expected dtype, shape and data_offsets")
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise bad_file(path, field, f"dtype: {str(dtype)[:32]} is not known")
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
            raise bad_file(path, field, f"{what}: expected sizes")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise bad_file(path, field, "data_offsets: expected a begin and an end")
    if 8 * (offsets[1] - offsets[0]) != math.prod(shape) * BITS[dtype]:
        raise bad_file(path, field, f"data_offsets: {offsets[1] - offsets[0]} bytes are not {shape} of {dtype}")
    return offsets[0], offsets[1]
