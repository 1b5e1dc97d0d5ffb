"""Models in several files: llama.cpp's split GGUFs (tools/gguf-split), named 'NAME-00001-of-00003.gguf'.

The first shard holds the metadata. Each shard holds some of the tensors and its number in `split.*` keys.
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
from .gguf_header import DEFAULT_ALIGNMENT, Header, RawValue, TensorInfo, pad
from .gguf_keys import KEY_ALIGNMENT, KEY_COUNT, KEY_NO, KEY_TENSORS
from .gguf_reader import read_header

MAX_SHARDS = (1 << 16) - 1  # split.count is a u16
_NAME = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)

T = TypeVar("T", bound=Tensor)


def shard_name(stem: str, shard: int, count: int) -> str:
    """Return the file name of a shard, as llama_split_path does: `shard` counts from 0, the name from 1."""
    return f"{stem}-{shard + 1:05}-of-{count:05}.gguf"


# ---------------------------------------------------------------- reading


def read_model(path: Path) -> Header:
    """Read the header of a model in one file, or in several shards if `path` is the first of them.

    Raises BadInput if a file is missing or damaged, Unsupported if `path` is another shard.
    """
    first = read_header(path)
    count = first.integer(KEY_COUNT, 1)
    if count <= 1:
        return replace(first, metadata=_without_split(first.metadata))
    if (shard := first.integer(KEY_NO)) != 0:
        name = _NAME.fullmatch(path.name)
        hint = f", {shard_name(name[1], 0, count)}" if name else ""
        raise Unsupported(
            f"shard {shard + 1} of {count}", path=path, field=KEY_NO, next_step=f"name the first one{hint}"
        )
    name = _NAME.fullmatch(path.name)
    if not name or name[2] != "00001" or int(name[3]) != count:
        reason = f"the first of {count} shards must be named {shard_name('NAME', 0, count)}"
        raise BadInput(reason, path=path, field=KEY_COUNT)
    headers = [first, *(_read_shard(path, name[1], index, count) for index in range(1, count))]
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for info in header.tensors.values():
            if info.name in tensors:
                other = tensors[info.name].path.name
                raise damaged(header.path, f"tensor '{info.name}'", f"is also in {other}")
            tensors[info.name] = info
    if (expected := first.integer(KEY_TENSORS, len(tensors))) != len(tensors):
        raise damaged(path, KEY_TENSORS, f"{expected} tensors, the {count} shards hold {len(tensors)}")
    return replace(
        first,
        metadata=_without_split(first.metadata),
        tensors=tensors,
        file_size=sum(header.file_size for header in headers),
        trailing=sum(header.trailing for header in headers),
    )


def _read_shard(first: Path, stem: str, index: int, count: int) -> Header:
    path = first.with_name(shard_name(stem, index, count))
    if not path.is_file():
        next_step = f"{first.name} is the first of {count} shards, put all in one folder"
        raise BadInput("no such file", path=path, next_step=next_step)
    header = read_header(path)
    found = header.integer(KEY_NO, 0), header.integer(KEY_COUNT, 1)
    if found != (index, count):
        raise damaged(path, f"{KEY_NO}, {KEY_COUNT}", f"{found[0]} of {found[1]}, expected {index} of {count}")
    return header


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
        """Size of the file in bytes."""
        return len(self.header) + sum(pad(tensor.n_bytes, self.alignment) for tensor in self.tensors)


def pieces(
    version: int,
    metadata: Mapping[str, RawValue],
    tensors: Sequence[T],
    alignment: int = DEFAULT_ALIGNMENT,
    max_bytes: int | None = None,
) -> tuple[Piece[T], ...]:
    """Divide a model into shards with at most `max_bytes` of tensors each, as llama-gguf-split does.

    Without `max_bytes` the model is one file. A larger tensor gets a shard of its own. Raises Unsupported if there
    would be too many shards.
    """
    groups = _groups(tensors, alignment, max_bytes)
    if len(groups) == 1:
        return (Piece(header_bytes(version, metadata, tensors, alignment), tuple(tensors), alignment),)
    if len(groups) > MAX_SHARDS:
        reason, next_step = f"makes {len(groups)} shards", f"at most {MAX_SHARDS} are possible"
        raise Unsupported(reason, field="--split-max-size", next_step=next_step)
    shards = []
    for index, group in enumerate(groups):
        keys = {key: metadata[key] for key in (KEY_ALIGNMENT,) if key in metadata} if index else dict(metadata)
        keys |= {
            KEY_NO: RawValue(GGUFValueType.UINT16, struct.pack("<H", index)),
            KEY_COUNT: RawValue(GGUFValueType.UINT16, struct.pack("<H", len(groups))),
            KEY_TENSORS: RawValue(GGUFValueType.INT32, struct.pack("<i", len(tensors))),
        }
        shards.append(Piece(header_bytes(version, keys, group, alignment), tuple(group), alignment))
    return tuple(shards)


def _groups(tensors: Iterable[T], alignment: int, max_bytes: int | None) -> list[list[T]]:
    groups: list[list[T]] = [[]]
    group_bytes = 0
    for tensor in tensors:
        n_bytes = pad(tensor.n_bytes, alignment)
        if max_bytes is not None and groups[-1] and group_bytes + n_bytes > max_bytes:
            groups.append([])
            group_bytes = 0
        groups[-1].append(tensor)
        group_bytes += n_bytes
    return groups


def piece_names(path: Path, count: int) -> tuple[Path, ...]:
    """Return the paths of the files: `path` itself for one file, else `count` shard names in the same folder."""
    if count == 1:
        return (path,)
    stem = path.name.removesuffix(".gguf")
    return tuple(path.with_name(shard_name(stem, index, count)) for index in range(count))
