"""Read the header of a GGUF file: metadata as raw bytes, tensor infos, and nothing of the tensor data.

    header = read_header(Path("model.gguf"))
    header.value("general.architecture")   # 'llama'
    header.tensors["token_embd.weight"].n_bytes

Every count is held against the bytes that the file has left before anything is allocated, and every rule that
llama.cpp's loader enforces (ggml/src/gguf.cpp) is enforced here too, so that a file which passes also loads there.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, TypeVar

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from ..errors import BadInput, Unsupported, damaged
from .lfs_pointer import refuse_lfs_pointer

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16  # the largest models have some thousands
MAX_HEADER = 64 << 20  # bytes, of which vocabularies take 10 MB; sparse files declare any number for free
MAX_STRINGS = 1 << 21  # in arrays, of which tokens and their merges have 0.8 million
MAX_ITEMS = 1 << 16  # of an array that we look into
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_TENSOR_NAME = 63  # GGML_MAX_NAME less its terminator
MAX_INT64 = (1 << 63) - 1
MAX_LENGTH = 1 << 30  # GGUF_MAX_STRING_LENGTH and GGUF_MAX_ARRAY_ELEMENTS

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
Type = TypeVar("Type", GGUFValueType, GGMLQuantizationType)


@dataclass(frozen=True)
class RawValue:
    """A metadata value as it stands in the file: `raw` is what follows the value type."""

    type: GGUFValueType
    raw: bytes

    @property
    def n_items(self) -> int:
        """Of an array; else 1."""
        return int.from_bytes(self.raw[4:12], "little") if self.type == GGUFValueType.ARRAY else 1

    def decode(self) -> Value:
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


def _strings(raw: bytes, at: int, count: int) -> Iterator[str]:
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", raw, at)
        yield raw[at + 8 : at + 8 + length].decode("utf-8", "replace")  # tokens of a vocabulary may be any bytes
        at += 8 + length


@dataclass(frozen=True)
class TensorInfo:
    """A tensor and where its bytes stand. `shape` is in ggml order: shape[0] is the length of a row."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    path: Path
    offset: int  # in bytes, from the start of the file `path`
    n_bytes: int


@dataclass(frozen=True)
class Header:
    """Of one file, or of all shards of a model (shards.py): then `path` is the first, `file_size` that of all."""

    path: Path
    version: int
    metadata: dict[str, RawValue]
    tensors: dict[str, TensorInfo]
    alignment: int
    data_offset: int
    file_size: int
    trailing: int = 0  # bytes of the file behind its tensors, which nothing reads

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the tensors are in."""
        return tuple(dict.fromkeys((self.path, *(info.path for info in self.tensors.values()))))

    def value(self, key: str) -> Value | None:
        raw = self.metadata.get(key)
        if raw is None:
            return None
        if raw.n_items > MAX_ITEMS:
            raise damaged(self.path, key, f"{raw.n_items} values, at most {MAX_ITEMS} are possible")
        return raw.decode()

    def text(self, key: str, default: str | None = None) -> str:
        value = self.value(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise damaged(self.path, key, f"expected a string, found {_found(value)}")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.value(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            raise damaged(self.path, key, f"expected an integer, found {_found(value)}")
        return value

    def integers(self, key: str, count: int, default: int | None = None) -> tuple[int, ...]:
        """A value per layer; a single number stands for all layers, as in llama.cpp's get_key_or_arr."""
        value = self.value(key)
        if not isinstance(value, list):
            return (self.integer(key, default),) * count
        if len(value) != count or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
            raise damaged(self.path, key, f"expected {count} integers")
        return tuple(int(v) for v in value)

    def flags(self, key: str, count: int) -> tuple[bool, ...] | None:
        """A truth value per layer; None if the key is not an array."""
        value = self.value(key)
        if not isinstance(value, list):
            return None
        if len(value) != count or not all(isinstance(v, int) for v in value):
            raise damaged(self.path, key, f"expected {count} truth values")
        return tuple(bool(v) for v in value)


def _found(value: Value | None) -> str:
    return "nothing" if value is None else type(value).__name__


def pad(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment


class _Reader:
    """A file and the number of its bytes that are still to be read."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self.file, self.path, self.size, self.at = file, path, size, 0
        self.strings = 0  # in arrays, so far

    def bad(self, what: str, why: str) -> BadInput:
        return damaged(self.path, what, why)

    def take(self, n: int, what: str) -> bytes:
        if n > self.size - self.at:
            raise self.bad(what, f"needs {n} bytes, the file ends after {self.size - self.at}")
        if n > MAX_HEADER - self.at:
            raise self.bad(what, f"{n} bytes are more than the header of a model has")
        self.at += n
        data = self.file.read(n)
        if len(data) != n:
            raise self.bad(what, "the file became shorter while it was read")
        return data

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def string(self, what: str) -> bytes:
        """The string with its length, as it stands in the file."""
        length = self.take(8, what)
        return length + self.take(self.bounded(int.from_bytes(length, "little"), what), what)

    def bounded(self, length: int, what: str) -> int:
        if length > MAX_LENGTH:
            raise self.bad(what, f"{length} is longer than llama.cpp allows")
        return length

    def text(self, raw: bytes, what: str) -> str:
        try:
            return raw[8:].decode("utf-8")
        except UnicodeDecodeError:
            raise self.bad(what, f"not UTF-8: {raw[8:72]!r}") from None

    def name(self, what: str) -> str:
        text = self.text(self.string(what), what)
        if not text or "\0" in text:
            raise self.bad(what, f"empty or with a NUL byte: {text[:64]!r}")
        return text

    def enum(self, kind: type[Type], what: str) -> Type:
        number = self.u32(what)
        try:
            return kind(number)
        except ValueError:
            raise Unsupported(
                f"{self.path}: {what}: unknown type {number}; get the file again, or a later version of this tool"
            ) from None


def read_header(path: Path) -> Header:
    """Read and check the header of the GGUF file at `path`. Raises BadInput or Unsupported."""
    if not path.is_file():
        raise BadInput(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
    with path.open("rb") as file:
        reader = _Reader(file, path, path.stat().st_size)
        version, n_tensors, n_keys = _preamble(reader)
        metadata = _metadata(reader, n_keys)
        alignment = _alignment(reader, metadata)
        infos = [_tensor_info(reader) for _ in range(n_tensors)]
        data_offset = pad(reader.at, alignment)
        tensors = _place(reader, infos, alignment, data_offset)
    end = data_offset + sum(pad(info.n_bytes, alignment) for info in infos)
    return Header(path, version, metadata, tensors, alignment, data_offset, reader.size, max(0, reader.size - end))


def _preamble(reader: _Reader) -> tuple[int, int, int]:
    if (magic := reader.take(4, "magic")) != MAGIC:
        refuse_lfs_pointer(reader.path)
        raise BadInput(f"{reader.path}: magic: not a GGUF file (it starts with {magic!r}); name a GGUF or a folder")
    version = reader.u32("version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "big"), "little")
        hint = " (a big-endian file)" if swapped in VERSIONS else ""
        raise Unsupported(
            f"{reader.path}: version: {version}{hint}, 2 and 3 are supported; make it again with a current llama.cpp"
        )
    n_tensors, n_keys = reader.u64("tensor count"), reader.u64("metadata count")
    if n_tensors > MAX_TENSORS or n_keys > MAX_KEYS:
        raise reader.bad("tensor and metadata counts", f"{n_tensors} and {n_keys} are implausible")
    return version, n_tensors, n_keys


def _metadata(reader: _Reader, count: int) -> dict[str, RawValue]:
    metadata: dict[str, RawValue] = {}
    for _ in range(count):
        key = reader.name("metadata key")
        if key in metadata:
            raise reader.bad(f"metadata key '{key}'", "stands twice")
        type = reader.enum(GGUFValueType, key)
        metadata[key] = RawValue(type, _raw_value(reader, type, key))
    return metadata


def _raw_value(reader: _Reader, type: GGUFValueType, key: str) -> bytes:
    if type == GGUFValueType.STRING:
        raw = reader.string(key)
        reader.text(raw, key)
        return raw
    if type != GGUFValueType.ARRAY:
        raw = reader.take(struct.calcsize(SCALARS[type]), key)
        if type == GGUFValueType.BOOL and raw not in (b"\0", b"\1"):
            raise reader.bad(key, f"a bool with the value {raw[0]}")
        return raw
    item_type = reader.enum(GGUFValueType, key)
    count = reader.bounded(reader.u64(key), key)
    head = struct.pack("<IQ", item_type, count)
    if item_type == GGUFValueType.ARRAY:
        raise reader.bad(key, "an array of arrays")
    if item_type == GGUFValueType.STRING:
        if 8 * count > reader.size - reader.at:
            raise reader.bad(key, f"{count} strings do not fit in the file")
        reader.strings += count
        if reader.strings > MAX_STRINGS:
            raise reader.bad(key, f"{count} strings are more than a vocabulary has")
        strings = bytearray(head)  # objects for all strings would take many times their bytes
        for _ in range(count):
            strings += reader.string(key)
        return bytes(strings)
    return head + reader.take(count * struct.calcsize(SCALARS[item_type]), key)


def _alignment(reader: _Reader, metadata: dict[str, RawValue]) -> int:
    raw = metadata.get("general.alignment")
    if raw is None:
        return DEFAULT_ALIGNMENT
    value = raw.decode() if raw.type == GGUFValueType.UINT32 else 0
    if not isinstance(value, int) or value <= 0 or value & (value - 1):
        raise reader.bad("general.alignment", f"must be a u32 and a power of two, found {value}")
    return value


def _tensor_info(reader: _Reader) -> TensorInfo:
    """A tensor info whose `offset` is still relative to the start of the data, as it stands in the file."""
    name = reader.name("tensor name")
    what = f"tensor '{name[:MAX_TENSOR_NAME]}'"
    if len(name.encode()) > MAX_TENSOR_NAME:
        raise reader.bad(f"{what}...", f"name longer than {MAX_TENSOR_NAME} bytes")
    n_dims = reader.u32(what)
    if n_dims > MAX_DIMS:
        raise reader.bad(what, f"{n_dims} dimensions, at most {MAX_DIMS} are allowed")
    shape = tuple(reader.u64(what) for _ in range(n_dims)) or (1,)
    type = reader.enum(GGMLQuantizationType, what)
    offset = reader.u64(what)
    if 0 in shape or math.prod(shape) > MAX_INT64:
        raise reader.bad(what, f"bad shape {list(shape)}")
    block, block_bytes = GGML_QUANT_SIZES[type]
    if shape[0] % block:
        raise reader.bad(what, f"rows of {shape[0]} are no whole number of {type.name} blocks ({block})")
    return TensorInfo(name, shape, type, reader.path, offset, math.prod(shape) // block * block_bytes)


def _place(reader: _Reader, infos: list[TensorInfo], alignment: int, data_offset: int) -> dict[str, TensorInfo]:
    """Hold each offset against the only layout that llama.cpp accepts: in order, padded, without gaps."""
    tensors: dict[str, TensorInfo] = {}
    expected = 0
    for info in infos:
        if info.name in tensors:
            raise reader.bad(f"tensor '{info.name}'", "stands twice")
        if info.offset != expected:
            raise reader.bad(f"tensor '{info.name}'", f"offset {info.offset}, expected {expected}")
        if info.n_bytes > reader.size - data_offset - info.offset:
            raise reader.bad(f"tensor '{info.name}'", "its data ends behind the end of the file")
        tensors[info.name] = replace(info, offset=data_offset + info.offset)
        expected += pad(info.n_bytes, alignment)
    return tensors
