"""Mutants of a Hugging Face folder: one file at a time has other JSON, broken JSON, or other data.

for path in mutants(folder, seed=1, count=1000): ...
"""

import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 1 << 31, 1 << 63, 1 << 64, 10**400, 0.5, 1e308, float("nan"), float("inf")),
    *("", "F32", "I64", "F8_E4M3", "../x", "/etc/passwd", "a\0b", "\x1b[2J", "x" * 300, "model.safetensors"),
    *([], [0], [0, 0], [8, 4], [1 << 62, 4], {}, {"": ""}, {"auto_map": {"AutoModel": "x.Y"}}),
)


def changed(chance: random.Random, value: Any) -> Any:
    """Return a JSON value in which one item is changed, removed, repeated or renamed."""
    if not (isinstance(value, dict | list) and value) or chance.random() < 0.1:
        return chance.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, copy = chance.choice(keys), value.copy()
    match chance.randrange(8):
        case 0:
            del copy[key]
        case 1 if isinstance(copy, dict):
            copy[str(chance.choice((chance.choice(keys), *VALUES)))] = copy.pop(key)
        case 2:
            copy[key] = value[chance.choice(keys)]
        case 3 if isinstance(copy, list):
            copy.insert(key, value[key])
        case _:
            copy[key] = changed(chance, value[key])
    return copy


def _text(chance: random.Random, text: bytes) -> bytes:
    value = json.loads(text)
    for _ in range(chance.randrange(1, 3)):
        value = changed(chance, value)
    new = json.dumps(value).encode()
    match chance.randrange(12):
        case 0:
            return new[: chance.randrange(len(new) + 1)]
        case 1:
            at = chance.randrange(len(new))
            return new[:at] + chance.randbytes(1) + new[at + 1 :]
        case 2:
            return new.replace(b"{", b'{"a": 1, "a": 2, ', 1).replace(b", }", b"}")
    return new


def _safetensors(chance: random.Random, whole: bytes) -> bytes:
    (length,) = struct.unpack_from("<Q", whole)
    header, data = _text(chance, whole[8 : 8 + length]), whole[8 + length :]
    said = chance.choice((len(header),) * 6 + (len(header) + 1, len(header) - 1, 0, 1 << 40, (1 << 64) - 1))
    if chance.random() < 0.2:
        data = data[: chance.randrange(len(data))] if chance.random() < 0.5 else data + bytes(chance.randrange(1, 40))
    return struct.pack("<Q", said & ((1 << 64) - 1)) + header + data


def mutants(folder: Path, seed: int, count: int) -> Iterator[Path]:
    """Break one file of `folder`, yield its path, and restore it; `count` times, the same for the same seed."""
    sound = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        name = chance.choice(list(sound))
        mutate = _safetensors if name.endswith(".safetensors") else _text
        (folder / name).write_bytes(mutate(chance, sound[name]))
        yield folder / name
        (folder / name).write_bytes(sound[name])
