"""Encode a GGUF header, and the metadata values that the exporter writes."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from gguf import GGMLQuantizationType, GGUFValueType

from .gguf_header import MAGIC, RawValue, pad


class Tensor(Protocol):
    """What a header says about a tensor; `shape` is in ggml order."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def type(self) -> GGMLQuantizationType: ...
    @property
    def n_bytes(self) -> int: ...


def string_bytes(text: str) -> bytes:
    """Encode a GGUF string: its length in bytes as u64, then UTF-8."""
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def raw_string(text: str) -> RawValue:
    """Encode a metadata value of type string."""
    return RawValue(GGUFValueType.STRING, string_bytes(text))


def raw_u32(number: int) -> RawValue:
    """Encode a metadata value of type uint32."""
    return RawValue(GGUFValueType.UINT32, struct.pack("<I", number))


def raw_array_i32(numbers: Sequence[int]) -> RawValue:
    """Encode a metadata value of type array of int32."""
    head = struct.pack("<IQ", GGUFValueType.INT32, len(numbers))
    return RawValue(GGUFValueType.ARRAY, head + struct.pack(f"<{len(numbers)}i", *numbers))


def raw_string_array(texts: Sequence[str]) -> RawValue:
    """Encode a metadata value of type array of strings."""
    head = struct.pack("<IQ", GGUFValueType.STRING, len(texts))
    return RawValue(GGUFValueType.ARRAY, head + b"".join(map(string_bytes, texts)))


def header_bytes(version: int, metadata: Mapping[str, RawValue], tensors: Iterable[Tensor], alignment: int) -> bytes:
    """Return all bytes of a GGUF file before its first tensor, padded to `alignment`.

    The tensors must follow in order, each padded to `alignment`.
    """
    tensors = tuple(tensors)
    parts = [MAGIC, struct.pack("<IQQ", version, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [string_bytes(key), struct.pack("<I", value.type), value.raw]
    offset = 0
    for tensor in tensors:
        n_dims = len(tensor.shape)
        parts.append(string_bytes(tensor.name))
        parts.append(struct.pack(f"<I{n_dims}QIQ", n_dims, *tensor.shape, tensor.type, offset))
        offset += pad(tensor.n_bytes, alignment)
    data = b"".join(parts)
    return data.ljust(pad(len(data), alignment), b"\0")
