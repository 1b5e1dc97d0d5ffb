"""Mutants of a GGUF file: copies in which some header fields or weights have other values.

    for data in gguf_mutants(sound, seed=1, count=2000): ...

A mutation knows the places of numbers, lengths, types, names and tensor infos, which random bit flips would hardly hit.
"""

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shareatt_export.formats.gguf_encode import string_bytes
from shareatt_export.formats.gguf_reader import read_header

EDGES = (0, 1, 2, 3, 7, 31, 32, 63, 64, 255, 256, 511, 512, 513, 65535, 65536)
WIDE = (*EDGES, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 62), (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
TEXTS = ("", "llama", "gpt2", "\0", "\x1b[2J", "ä" * 40, "../x", "n" * 64, "%s", "{{ 7 * 7 }}", "general.name")


@dataclass
class Parts:
    """The fields of a GGUF header in their order, and the bytes after the header. The fields may be changed."""

    version: int
    n_tensors: int
    n_keys: int
    metadata: list[tuple[bytes, int, bytes]]  # name, type, value
    tensors: list[tuple[bytes, list[int], int, int]]  # name, shape, type, offset
    data: bytes

    def bytes(self) -> bytes:
        """Return the file."""
        head = b"GGUF" + struct.pack("<IQQ", self.version, self.n_tensors, self.n_keys)
        for name, type, raw in self.metadata:
            head += struct.pack("<Q", len(name)) + name + struct.pack("<I", type) + raw
        for name, shape, type, offset in self.tensors:
            head += struct.pack("<Q", len(name)) + name
            head += struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type, offset)
        return head.ljust(-(-len(head) // 32) * 32, b"\0") + self.data


def parts_of(path: Path) -> Parts:
    """Return the parts of a GGUF file."""
    header = read_header(path)
    metadata = [(key.encode(), int(raw.type), raw.raw) for key, raw in header.metadata.items()]
    tensors = [
        (info.name.encode(), list(info.shape), int(info.type), info.offset - header.data_offset)
        for info in header.tensors.values()
    ]
    data = path.read_bytes()[header.data_offset :]
    return Parts(header.version, len(tensors), len(metadata), metadata, tensors, data)


def _number(random: random.Random, old: int, bits: int) -> int:
    near = old + random.choice((-33, -32, -1, 1, 2, 32, 1 << 16))
    return random.choice((near, random.choice(WIDE), random.getrandbits(bits))) & ((1 << bits) - 1)


def _counts(random: random.Random, parts: Parts) -> None:
    field, bits = random.choice((("version", 32), ("n_tensors", 64), ("n_keys", 64)))
    setattr(parts, field, _number(random, getattr(parts, field), bits))


def _key(random: random.Random, parts: Parts) -> None:
    i = random.randrange(len(parts.metadata))
    _, type, raw = parts.metadata[i]
    other = random.choice((random.choice(parts.metadata)[0], random.choice(TEXTS).encode(), random.randbytes(4)))
    parts.metadata[i] = other, type, raw


def _type(random: random.Random, parts: Parts) -> None:
    i = random.randrange(len(parts.metadata))
    name, _, raw = parts.metadata[i]
    parts.metadata[i] = name, _number(random, random.randrange(14), 32 if random.random() < 0.1 else 4), raw


def _value(random: random.Random, parts: Parts) -> None:
    """Give a key another value of the same type, or another length or item type."""
    i = random.randrange(len(parts.metadata))
    name, type, raw = parts.metadata[i]
    if type == 8 and random.random() < 0.5:
        raw = string_bytes(random.choice(TEXTS))
    elif type == 9 and random.random() < 0.5:
        at, size = random.choice(((0, 4), (4, 8)))
        number = _number(random, int.from_bytes(raw[at : at + size], "little"), 8 * size)
        raw = raw[:at] + number.to_bytes(size, "little") + raw[at + size :]
    elif len(raw) >= 4:
        at = random.randrange(len(raw) - 3)
        number = _number(random, int.from_bytes(raw[at : at + 4], "little"), 32)
        raw = raw[:at] + number.to_bytes(4, "little") + raw[at + 4 :]
    else:
        raw = random.randbytes(len(raw))
    parts.metadata[i] = name, type, raw


def _drop_or_double(random: random.Random, parts: Parts) -> None:
    """Remove or repeat a metadata entry or tensor; correct the counts in most cases."""
    entries: list[Any] = random.choice((parts.metadata, parts.tensors))
    i = random.randrange(len(entries))
    if random.random() < 0.5:
        del entries[i]
    else:
        entries.insert(random.randrange(len(entries)), entries[i])
    if random.random() < 0.7:
        parts.n_tensors, parts.n_keys = len(parts.tensors), len(parts.metadata)


def _tensor(random: random.Random, parts: Parts) -> None:
    i = random.randrange(len(parts.tensors))
    name, shape, type, offset = parts.tensors[i]
    what = random.randrange(5)
    if what == 0:
        name = random.choice((random.choice(parts.tensors)[0], random.choice(TEXTS).encode(), name[:-1], b"\xff"))
    elif what == 1 and shape:
        shape[random.randrange(len(shape))] = _number(random, shape[0], 64)
    elif what == 2:
        shape = random.choice(([], [*shape, 1], [*shape, 1, 1, 1], shape[::-1], shape[:1]))
    elif what == 3:
        type = _number(random, random.randrange(45), 32 if random.random() < 0.1 else 6)
    else:
        offset = _number(random, offset, 64)
    parts.tensors[i] = name, shape, type, offset


def _swap(random: random.Random, parts: Parts) -> None:
    entries: list[Any] = random.choice((parts.metadata, parts.tensors))
    i, j = random.randrange(len(entries)), random.randrange(len(entries))
    entries[i], entries[j] = entries[j], entries[i]


def _weights(random: random.Random, parts: Parts) -> None:
    """Change some bytes of the tensor data; sometimes cut it or make it longer."""
    data = bytearray(parts.data)
    for _ in range(random.randrange(1, 9)):
        data[random.randrange(len(data))] = random.getrandbits(8)
    if random.random() < 0.3:
        data = data[: random.randrange(len(data))]
    elif random.random() < 0.3:
        data += random.randbytes(random.randrange(1, 100))
    parts.data = bytes(data)


Mutation = Callable[[random.Random, Parts], None]
STRUCTURED: tuple[Mutation, ...] = (
    _counts, _key, _type, _value, _value, _value, _drop_or_double, _tensor, _tensor, _tensor, _swap, _weights,
)  # fmt: skip


def gguf_mutants(sound: Path, seed: int, count: int, mutations: Sequence[Mutation] = STRUCTURED) -> Iterator[bytes]:
    """Yield `count` mutants of the file `sound`, the same for the same seed.

    Each has one to three mutations. In every eighth, one to five bytes of the header are random instead.
    """
    whole, n_header = sound.read_bytes(), read_header(sound).data_offset
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        if number % 8 == 7:
            data = bytearray(whole)
            for _ in range(chance.randrange(1, 6)):
                data[chance.randrange(n_header)] = chance.getrandbits(8)
            yield bytes(data)
            continue
        parts = parts_of(sound)
        for _ in range(chance.randrange(1, 4)):
            if parts.tensors and parts.metadata:
                chance.choice(mutations)(chance, parts)
        yield parts.bytes()
