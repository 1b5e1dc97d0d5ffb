"""GGUF files from single fields, so that each field can be wrong, and copies of models with other tensors."""

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from shareatt_export.formats.gguf_encode import header_bytes
from shareatt_export.formats.gguf_header import Header, TensorInfo, pad
from shareatt_export.formats.gguf_reader import read_header

U8, U32, I32, F32, BOOL, STRING, ARRAY = 0, 4, 5, 6, 7, 8, 9


def string(text: str | bytes) -> bytes:
    """Return a GGUF string: length and characters."""
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def kv(key: str | bytes, type: int, raw: bytes) -> bytes:
    """Return a metadata entry with the value `raw`."""
    return string(key) + struct.pack("<I", type) + raw


def array(item_type: int, count: int, raw: bytes = b"") -> bytes:
    """Return an array value that claims `count` items."""
    return struct.pack("<IQ", item_type, count) + raw


def tensor(name: str = "a", shape: Sequence[int] = (4,), type: int = 0, offset: int = 0) -> bytes:
    """Return the header entry of a tensor."""
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type, offset)


def gguf_file(
    *entries: bytes,
    kvs: Sequence[bytes] = (),
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_kv: int | None = None,
    data: bytes = bytes(64),
    align: int = 32,
) -> bytes:
    """Return a GGUF file with the tensor entries `entries` and the metadata entries `kvs`.

    n_tensors and n_kv are the counts in the header; by default they are right.
    """
    head = magic + struct.pack("<I", version)
    head += struct.pack("<QQ", len(entries) if n_tensors is None else n_tensors, len(kvs) if n_kv is None else n_kv)
    head += b"".join(kvs) + b"".join(entries)
    return head.ljust(pad(len(head), align), b"\0") + data


ARCH = kv("general.architecture", STRING, string("llama"))


def with_tensors(
    source: Path, out: Path, without: Iterable[str] = (), **extra: tuple[tuple[int, ...], GGMLQuantizationType]
) -> Path:
    """Write a copy of a model without the tensors `without`, and with the tensors `extra`, filled with zeros.

    The names of `extra` have __ for a dot; their values are the shape and type. Returns `out`.
    """
    header = read_header(source)
    data = source.read_bytes()
    kept = [info for name, info in header.tensors.items() if name not in {*without}]
    parts = [data[info.offset : info.offset + info.n_bytes] for info in kept]
    for name, (shape, type) in extra.items():
        n_bytes = size(shape, type)
        kept.append(TensorInfo(name.replace("__", "."), shape, type, out, 0, n_bytes))
        parts.append(bytes(n_bytes))
    out.write_bytes(_head(header, kept) + b"".join(part.ljust(pad(len(part), 32), b"\0") for part in parts))
    return out


def size(shape: Sequence[int], type: GGMLQuantizationType) -> int:
    """Return the number of bytes of a tensor."""
    block, block_bytes = GGML_QUANT_SIZES[type]
    n = 1
    for length in shape:
        n *= length
    return n // block * block_bytes


def _head(header: Header, tensors: Sequence[TensorInfo]) -> bytes:
    return header_bytes(header.version, header.metadata, tensors, header.alignment)
