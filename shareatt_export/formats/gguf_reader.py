"""Read the header of a GGUF file: metadata as raw bytes and tensor infos, but no tensor data.

    header = read_header(Path("model.gguf"))

The reader compares every count with the bytes that the file has left before it allocates memory. It enforces every
rule of llama.cpp's loader (ggml/src/gguf.cpp), so a file that passes here also loads there.
"""

import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, TypeVar

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from ..errors import BadInput, Unsupported, damaged
from .gguf_header import DEFAULT_ALIGNMENT, MAGIC, SCALARS, Header, RawValue, TensorInfo, pad
from .lfs_pointer import refuse_lfs_pointer

VERSIONS = (2, 3)
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16  # the largest models have some thousands
MAX_HEADER = 64 << 20  # bytes; large vocabularies take 10 MB, and a small sparse file can declare any number
MAX_STRINGS = 1 << 21  # in all arrays; tokens and merges of large vocabularies are 0.8 million
MAX_DIMS = 4  # GGML_MAX_DIMS
MAX_TENSOR_NAME = 63  # bytes; GGML_MAX_NAME without the terminator
MAX_INT64 = (1 << 63) - 1
MAX_LENGTH = 1 << 30  # GGUF_MAX_STRING_LENGTH and GGUF_MAX_ARRAY_ELEMENTS
Type = TypeVar("Type", GGUFValueType, GGMLQuantizationType)


class _Reader:
    """Reads the parts of a header in order and checks each length before it reads; `field` names the part in errors."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self.file, self.path, self.size, self.position = file, path, size, 0
        self.n_strings = 0  # in arrays, so far

    def bad(self, field: str, reason: str) -> BadInput:
        return damaged(self.path, field, reason)

    def take(self, n: int, field: str) -> bytes:
        if n > self.size - self.position:
            raise self.bad(field, f"needs {n} bytes, the file ends after {self.size - self.position}")
        if n > MAX_HEADER - self.position:
            raise self.bad(field, f"{n} bytes are more than the header of a model has")
        self.position += n
        data = self.file.read(n)
        if len(data) != n:
            raise self.bad(field, "the file became shorter while it was read")
        return data

    def u32(self, field: str) -> int:
        return int.from_bytes(self.take(4, field), "little")

    def u64(self, field: str) -> int:
        return int.from_bytes(self.take(8, field), "little")

    def string(self, field: str) -> bytes:
        """Return the string with its length, as the file has it."""
        length = self.take(8, field)
        return length + self.take(self.bounded(int.from_bytes(length, "little"), field), field)

    def bounded(self, length: int, field: str) -> int:
        if length > MAX_LENGTH:
            raise self.bad(field, f"{length} is longer than llama.cpp allows")
        return length

    def text(self, raw: bytes, field: str) -> str:
        try:
            return raw[8:].decode("utf-8")
        except UnicodeDecodeError:
            raise self.bad(field, f"not UTF-8: {raw[8:72]!r}") from None

    def name(self, field: str) -> str:
        text = self.text(self.string(field), field)
        if not text or "\0" in text:
            raise self.bad(field, f"empty or with a NUL byte: {text[:64]!r}")
        return text

    def enum(self, kind: type[Type], field: str) -> Type:
        number = self.u32(field)
        try:
            return kind(number)
        except ValueError:
            next_step = "get the file again, or a later version of this tool"
            raise Unsupported(f"unknown type {number}", path=self.path, field=field, next_step=next_step) from None


def read_header(path: Path) -> Header:
    """Read and check the header of the GGUF file at `path`. Raises BadInput or Unsupported."""
    if not path.is_file():
        raise BadInput("not a regular file" if path.exists() else "no such file", path=path)
    with path.open("rb") as file:
        reader = _Reader(file, path, path.stat().st_size)
        version, n_tensors, n_keys = _preamble(reader)
        metadata = _metadata(reader, n_keys)
        alignment = _alignment(reader, metadata)
        infos = [_tensor_info(reader) for _ in range(n_tensors)]
        data_offset = pad(reader.position, alignment)
        tensors = _place_tensors(reader, infos, alignment, data_offset)
    end = data_offset + sum(pad(info.n_bytes, alignment) for info in infos)
    return Header(path, version, metadata, tensors, alignment, data_offset, reader.size, max(0, reader.size - end))


def _preamble(reader: _Reader) -> tuple[int, int, int]:
    if (magic := reader.take(4, "magic")) != MAGIC:
        refuse_lfs_pointer(reader.path)
        reason = f"not a GGUF file (it starts with {magic!r})"
        raise BadInput(reason, path=reader.path, field="magic", next_step="name a GGUF or a folder")
    version = reader.u32("version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "big"), "little")
        hint = " (a big-endian file)" if swapped in VERSIONS else ""
        raise Unsupported(
            f"{version}{hint}, 2 and 3 are supported",
            path=reader.path,
            field="version",
            next_step="make it again with a current llama.cpp",
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
            raise reader.bad(f"metadata key '{key}'", "appears twice")
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
        if 8 * count > reader.size - reader.position:
            raise reader.bad(key, f"{count} strings do not fit in the file")
        reader.n_strings += count
        if reader.n_strings > MAX_STRINGS:
            raise reader.bad(key, f"{count} strings are more than a vocabulary has")
        strings = bytearray(head)  # one Python object per string would take many times the memory
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
    """Read a tensor info. Its `offset` is relative to the start of the data, as in the file."""
    name = reader.name("tensor name")
    field = f"tensor '{name[:MAX_TENSOR_NAME]}'"
    if len(name.encode()) > MAX_TENSOR_NAME:
        raise reader.bad(f"{field}...", f"name longer than {MAX_TENSOR_NAME} bytes")
    n_dims = reader.u32(field)
    if n_dims > MAX_DIMS:
        raise reader.bad(field, f"{n_dims} dimensions, at most {MAX_DIMS} are allowed")
    shape = tuple(reader.u64(field) for _ in range(n_dims)) or (1,)
    type = reader.enum(GGMLQuantizationType, field)
    offset = reader.u64(field)
    if 0 in shape or math.prod(shape) > MAX_INT64:
        raise reader.bad(field, f"bad shape {list(shape)}")
    block, block_bytes = GGML_QUANT_SIZES[type]
    if shape[0] % block:
        raise reader.bad(field, f"rows of {shape[0]} are not a whole number of {type.name} blocks ({block})")
    return TensorInfo(name, shape, type, reader.path, offset, math.prod(shape) // block * block_bytes)


def _place_tensors(reader: _Reader, infos: list[TensorInfo], alignment: int, data_offset: int) -> dict[str, TensorInfo]:
    """Make the offsets relative to the file, and check that the tensors are in order, padded and without gaps.

    llama.cpp accepts no other layout.
    """
    tensors: dict[str, TensorInfo] = {}
    expected = 0
    for info in infos:
        if info.name in tensors:
            raise reader.bad(f"tensor '{info.name}'", "appears twice")
        if info.offset != expected:
            raise reader.bad(f"tensor '{info.name}'", f"offset {info.offset}, expected {expected}")
        if info.n_bytes > reader.size - data_offset - info.offset:
            raise reader.bad(f"tensor '{info.name}'", "its data ends after the end of the file")
        tensors[info.name] = replace(info, offset=data_offset + info.offset)
        expected += pad(info.n_bytes, alignment)
    return tensors
