"""A model in several files: llama.cpp's split GGUFs (tools/gguf-split), named 'NAME-00001-of-00003.gguf'.

The first shard holds the metadata, each shard some of the tensors, and `split.*` keys say how they belong together.
"""

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from gguf import GGUFValueType

from ..errors import BadInput, Unsupported, damaged
from .gguf_encode import Tensor, header_bytes
from .gguf_header import DEFAULT_ALIGNMENT, Header, RawValue, TensorInfo, pad, read_header
from .gguf_keys import KEY_ALIGNMENT, KEY_COUNT, KEY_NO, KEY_TENSORS

MAX_SHARDS = (1 << 16) - 1  # split.count is a u16
_NAME = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)

T = TypeVar("T", bound=Tensor)


def shard_name(stem: str, shard: int, count: int) -> str:
    """As llama_split_path: shards count from 0, their names from 1."""
    return f"{stem}-{shard + 1:05}-of-{count:05}.gguf"


# ---------------------------------------------------------------- reading


def read_model(path: Path) -> Header:
    """The header of a model in one file, or in shards of which `path` is the first. Raises BadInput, Unsupported."""
    first = read_header(path)
    count = first.integer(KEY_COUNT, 1)
    if count <= 1:
        return replace(first, metadata=_without_split(first.metadata))
    if (no := first.integer(KEY_NO)) != 0:
        name = _NAME.fullmatch(path.name)
        hint = f", {shard_name(name[1], 0, count)}" if name else ""
        raise Unsupported(f"{path}: {KEY_NO}: shard {no + 1} of {count}; name the first one{hint}")
    name = _NAME.fullmatch(path.name)
    if not name or name[2] != "00001" or int(name[3]) != count:
        raise BadInput(f"{path}: {KEY_COUNT}: the first of {count} shards must be named {shard_name('NAME', 0, count)}")
    shards = [first, *(_further(path, name[1], no, count) for no in range(1, count))]
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        for info in shard.tensors.values():
            if info.name in tensors:
                where = tensors[info.name].path.name
                raise damaged(shard.path, f"tensor '{info.name}'", f"stands in {where} too")
            tensors[info.name] = info
    if (expected := first.integer(KEY_TENSORS, len(tensors))) != len(tensors):
        raise damaged(path, KEY_TENSORS, f"{expected} tensors, the {count} shards hold {len(tensors)}")
    return replace(
        first,
        metadata=_without_split(first.metadata),
        tensors=tensors,
        file_size=sum(shard.file_size for shard in shards),
        trailing=sum(shard.trailing for shard in shards),
    )


def _further(first: Path, stem: str, no: int, count: int) -> Header:
    path = first.with_name(shard_name(stem, no, count))
    if not path.is_file():
        raise BadInput(f"{path}: no such file; {first.name} is the first of {count} shards, put all in one folder")
    shard = read_header(path)
    found = shard.integer(KEY_NO, 0), shard.integer(KEY_COUNT, 1)
    if found != (no, count):
        raise damaged(path, f"{KEY_NO}, {KEY_COUNT}", f"{found[0]} of {found[1]}, expected {no} of {count}")
    return shard


def _without_split(metadata: Mapping[str, RawValue]) -> dict[str, RawValue]:
    return {key: raw for key, raw in metadata.items() if key not in (KEY_NO, KEY_COUNT, KEY_TENSORS)}


# ---------------------------------------------------------------- writing


@dataclass(frozen=True)
class Piece(Generic[T]):
    """One file to write: a header, then the tensors in order, each padded to `alignment`."""

    header: bytes
    tensors: tuple[T, ...]
    alignment: int

    @property
    def file_size(self) -> int:
        return len(self.header) + sum(pad(tensor.n_bytes, self.alignment) for tensor in self.tensors)


def pieces(
    version: int,
    metadata: Mapping[str, RawValue],
    tensors: Sequence[T],
    alignment: int = DEFAULT_ALIGNMENT,
    max_bytes: int | None = None,
) -> tuple[Piece[T], ...]:
    """A model as one file, or as shards with at most `max_bytes` of tensors each, as llama-gguf-split does it.

    A tensor that is larger has a shard of its own. Raises Unsupported if that makes too many shards.
    """
    groups = _groups(tensors, alignment, max_bytes)
    if len(groups) == 1:
        return (Piece(header_bytes(version, metadata, tensors, alignment), tuple(tensors), alignment),)
    if len(groups) > MAX_SHARDS:
        raise Unsupported(f"--split-max-size: makes {len(groups)} shards; at most {MAX_SHARDS} are possible")
    made = []
    for no, group in enumerate(groups):
        keys = {key: metadata[key] for key in (KEY_ALIGNMENT,) if key in metadata} if no else dict(metadata)
        keys |= {
            KEY_NO: RawValue(GGUFValueType.UINT16, struct.pack("<H", no)),
            KEY_COUNT: RawValue(GGUFValueType.UINT16, struct.pack("<H", len(groups))),
            KEY_TENSORS: RawValue(GGUFValueType.INT32, struct.pack("<i", len(tensors))),
        }
        made.append(Piece(header_bytes(version, keys, group, alignment), tuple(group), alignment))
    return tuple(made)


def _groups(tensors: Iterable[T], alignment: int, max_bytes: int | None) -> list[list[T]]:
    groups: list[list[T]] = [[]]
    used = 0
    for tensor in tensors:
        n_bytes = pad(tensor.n_bytes, alignment)
        if max_bytes is not None and groups[-1] and used + n_bytes > max_bytes:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += n_bytes
    return groups


def piece_names(path: Path, count: int) -> tuple[Path, ...]:
    """`path` for one file; for shards, names beside it."""
    if count == 1:
        return (path,)
    stem = path.name.removesuffix(".gguf")
    return tuple(path.with_name(shard_name(stem, no, count)) for no in range(count))
