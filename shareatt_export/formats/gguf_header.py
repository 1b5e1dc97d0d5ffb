"""What the header of a GGUF file says: metadata as raw bytes, which are decoded on demand, and tensor infos.

header.value("general.architecture")   # 'llama'
header.tensors["token_embd.weight"].n_bytes
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gguf import GGMLQuantizationType, GGUFValueType

from ..errors import damaged

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_ITEMS = 1 << 16  # in an array that the exporter decodes

SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}

Scalar = int | float | bool | str
Value = Scalar | list[Scalar]


@dataclass(frozen=True)
class RawValue:
    """A metadata value as the file has it: `raw` holds the bytes that follow the value type."""

    type: GGUFValueType
    raw: bytes

    @property
    def n_items(self) -> int:
        """Number of items of an array; 1 for other types."""
        return int.from_bytes(self.raw[4:12], "little") if self.type == GGUFValueType.ARRAY else 1

    def decode(self) -> Value:
        """Return the value as a Python object; bytes that are not UTF-8 in an array of strings are replaced."""
        if self.type == GGUFValueType.STRING:
            return self.raw[8:].decode("utf-8")
        if self.type != GGUFValueType.ARRAY:
            return _unpack_scalar(self.type, self.raw)
        item_type = GGUFValueType(struct.unpack_from("<I", self.raw)[0])
        if item_type == GGUFValueType.STRING:
            return list(_strings(self.raw, 12, self.n_items))
        return list(struct.unpack_from(f"<{self.n_items}{SCALARS[item_type]}", self.raw, 12))


def _unpack_scalar(type: GGUFValueType, raw: bytes) -> Scalar:
    value: Scalar = struct.unpack(f"<{SCALARS[type]}", raw)[0]
    return value


def _strings(raw: bytes, offset: int, count: int) -> Iterator[str]:
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", raw, offset)
        yield raw[offset + 8 : offset + 8 + length].decode("utf-8", "replace")  # tokens may be any bytes
        offset += 8 + length


@dataclass(frozen=True)
class TensorInfo:
    """A tensor and the place of its bytes. `shape` is in ggml order: shape[0] is the length of a row."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    path: Path
    offset: int  # bytes from the start of the file `path`
    n_bytes: int


@dataclass(frozen=True)
class Header:
    """The header of a file, or the joint header of all shards of a model (shards.py).

    For shards, `path` is the first file and `file_size` the sum of all sizes.
    """

    path: Path
    version: int
    metadata: dict[str, RawValue]
    tensors: dict[str, TensorInfo]
    alignment: int
    data_offset: int
    file_size: int
    trailing: int = 0  # bytes after the last tensor, which no program reads

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the tensors, the first shard first."""
        return tuple(dict.fromkeys((self.path, *(info.path for info in self.tensors.values()))))

    def value(self, key: str) -> Value | None:
        """Return a decoded metadata value, None without the key. Raises BadInput for an array that is too long."""
        raw = self.metadata.get(key)
        if raw is None:
            return None
        if raw.n_items > MAX_ITEMS:
            raise damaged(self.path, key, f"{raw.n_items} values, at most {MAX_ITEMS} are possible")
        return raw.decode()

    def text(self, key: str, default: str | None = None) -> str:
        """Return a metadata string. Raises BadInput if it has another type, or is missing without a default."""
        value = self.value(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise damaged(self.path, key, f"expected a string, found {_found(value)}")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a metadata integer. Raises BadInput if it has another type, or is missing without a default."""
        value = self.value(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            raise damaged(self.path, key, f"expected an integer, found {_found(value)}")
        return value

    def integers(self, key: str, count: int, default: int | None = None) -> tuple[int, ...]:
        """Return one integer per layer; a single number counts for all layers, as in llama.cpp's get_key_or_arr.

        Raises BadInput for a value of another type or length.
        """
        value = self.value(key)
        if not isinstance(value, list):
            return (self.integer(key, default),) * count
        if len(value) != count or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
            raise damaged(self.path, key, f"expected {count} integers")
        return tuple(int(v) for v in value)

    def flags(self, key: str, count: int) -> tuple[bool, ...] | None:
        """Return one truth value per layer, None if the key is not an array. Raises BadInput for a bad array."""
        value = self.value(key)
        if not isinstance(value, list):
            return None
        if len(value) != count or not all(isinstance(v, int) for v in value):
            raise damaged(self.path, key, f"expected {count} truth values")
        return tuple(bool(v) for v in value)


def _found(value: Value | None) -> str:
    return "nothing" if value is None else type(value).__name__


def pad(n: int, alignment: int) -> int:
    """Round `n` up to a multiple of `alignment`."""
    return -(-n // alignment) * alignment
