"""SA files that llama.cpp must refuse: a table of files with one mistake each, and mutants."""

import random
import struct
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from gguf import GGUFValueType

from shareatt_export.formats.gguf_encode import raw_array_i32, raw_string, raw_string_array, raw_u32
from shareatt_export.formats.gguf_header import RawValue
from tests.support import small_gguf
from tests.support.exports import export
from tests.support.faults.gguf_bytes import with_tensors
from tests.support.faults.gguf_mutants import STRUCTURED, Parts, gguf_mutants
from tests.support.source_layers import SOURCE_LAYERS, SOURCE_LAYERS_ARGUMENT
from tests.support.source_layers import SOURCE_LAYERS_KEY as KEY

ARRAY_OF_I32 = f"{KEY}: must be an array of i32"
VERSION = "shareatt.format_version: "


def array_of(type: GGUFValueType, code: str) -> RawValue:
    """Return the source layers as an array of another item type; `code` is its struct format."""
    return RawValue(GGUFValueType.ARRAY, struct.pack(f"<IQ12{code}", type, 12, *SOURCE_LAYERS))


def scalar(type: GGUFValueType, code: str, number: float) -> RawValue:
    """Return a number as a value of `type`; `code` is its struct format."""
    return RawValue(type, struct.pack(f"<{code}", number))


def changed(layer: int, source: int) -> RawValue:
    """Return source layers in which only `layer` has another source."""
    return raw_array_i32([*range(layer), source, *range(layer + 1, small_gguf.N_LAYER)])


MAPS = {  # bad values of the source layers, and the message
    "a scalar": (raw_u32(1), ARRAY_OF_I32),
    "a text": (raw_string("6-9"), ARRAY_OF_I32),
    "texts": (raw_string_array(["0"] * 12), ARRAY_OF_I32),
    "u32": (array_of(GGUFValueType.UINT32, "I"), ARRAY_OF_I32),
    "i8": (array_of(GGUFValueType.INT8, "b"), ARRAY_OF_I32),
    "u8": (array_of(GGUFValueType.UINT8, "B"), ARRAY_OF_I32),
    "i16": (array_of(GGUFValueType.INT16, "h"), ARRAY_OF_I32),
    "i64": (array_of(GGUFValueType.INT64, "q"), ARRAY_OF_I32),
    "u64": (array_of(GGUFValueType.UINT64, "Q"), ARRAY_OF_I32),
    "f32": (array_of(GGUFValueType.FLOAT32, "f"), ARRAY_OF_I32),
    "truths": (array_of(GGUFValueType.BOOL, "?"), ARRAY_OF_I32),
    "too short": (raw_array_i32(SOURCE_LAYERS[:-1]), f"{KEY}: has 11 layers, the model has 12"),
    "too long": (raw_array_i32([*SOURCE_LAYERS, 12]), f"{KEY}: has 13 layers, the model has 12"),
    "513 layers": (raw_array_i32(range(513)), f"{KEY}: has 513 layers, the model has 12"),
    "a million layers": (raw_array_i32([0] * 1_000_000), f"{KEY}: has 1000000 layers, the model has 12"),
    "empty": (raw_array_i32([]), f"{KEY}: has 0 layers, the model has 12"),
    "-1 first": (changed(0, -1), f"{KEY}: layer 0: source -1 is not a layer at or before it"),
    "-1": (changed(1, -1), f"{KEY}: layer 1: source -1 is not a layer at or before it"),
    "the least number": (changed(5, -(1 << 31)), f"{KEY}: layer 5: source -2147483648 is not a layer"),
    "the greatest number": (
        changed(5, (1 << 31) - 1),
        f"{KEY}: layer 5: source 2147483647 is not a layer",
    ),
    "ahead": (changed(1, 2), f"{KEY}: layer 1: source 2 is not a layer at or before it"),
    "behind the last": (changed(11, 12), f"{KEY}: layer 11: source 12 is not a layer"),
    "a follower": (
        raw_array_i32([0, 0, 1, *range(3, 12)]),
        f"{KEY}: layer 2: source 1 does not compute its own",
    ),
    "a chain": (
        raw_array_i32([0, 0, 1, 2, *range(4, 12)]),
        f"{KEY}: layer 2: source 1 does not compute its own",
    ),
    "a source without Q": (raw_array_i32([*range(8), 7, 7, 10, 11]), "blk.7.attn_q.weight"),
}
VERSIONS = {  # bad values of the format version, and the message
    "version 2": (raw_u32(2), VERSION + f"is 2, but the file has {KEY}"),
    "version 3": (raw_u32(3), VERSION + "is 3, this runtime knows up to 2"),
    "the greatest version": (raw_u32((1 << 32) - 1), VERSION + "is 4294967295, this runtime knows up to 2"),
    "version a text": (raw_string("1"), VERSION),
    "version i32": (scalar(GGUFValueType.INT32, "i", 1), VERSION),
    "version f32": (scalar(GGUFValueType.FLOAT32, "f", 1.0), VERSION),
}
HEADS = {  # counts in which a follower has another number of heads than its source
    "query heads": ("llama__attention__head_count", [4] * 8 + [2] + [4] * 3),
    "KV heads": ("llama__attention__head_count_kv", [2] * 7 + [4] + [2] * 4),
}
COUNTS = {  # counts of a source and its followers that attention cannot be computed with
    "no query heads": ("llama__attention__head_count", [4] * 6 + [0] * 4 + [4] * 2, "0 query heads and 2 KV heads"),
    "no KV heads": ("llama__attention__head_count_kv", [2] * 6 + [0] * 4 + [2] * 2, "4 query heads and 0 KV heads"),
    "a remainder": ("llama__attention__head_count_kv", [2] * 6 + [3] * 4 + [2] * 2, "4 query heads and 3 KV heads"),
}
A_BILLION_HEADS = {"llama__attention__head_count": raw_u32(1 << 30), "llama__attention__head_count_kv": raw_u32(2)}
MISSING = ("blk.6.attn_q.weight", "blk.6.attn_k.weight", "blk.8.attn_v.weight")


# By the mistake: a function (source, out) that writes the bad file from a correct one, and the message of the loader.
BAD_FILES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    **{
        name: (partial(small_gguf.with_metadata, **{SOURCE_LAYERS_ARGUMENT: value}), message)
        for name, (value, message) in MAPS.items()
    },
    **{
        name: (partial(small_gguf.with_metadata, shareatt__format_version=value), message)
        for name, (value, message) in VERSIONS.items()
    },
    **{
        f"{name} unlike the source's": (
            partial(small_gguf.with_metadata, **{field: raw_array_i32(counts)}),
            KEY,
        )
        for name, (field, counts) in HEADS.items()
    },
    **{
        name: (
            partial(small_gguf.with_metadata, **{field: raw_array_i32(counts)}),
            f"layer 7: cannot share with {message}",
        )
        for name, (field, counts, message) in COUNTS.items()
    },
    "a billion heads": (partial(small_gguf.with_metadata, **A_BILLION_HEADS), "a layer has 1073741824 heads"),
    **{f"no {name}": (partial(with_tensors, without=[name]), name) for name in MISSING},
}


# ---------------------------------------------------------------- mutants


def _map(random: random.Random, parts: Parts) -> None:
    """Change the source of one layer, or add or remove a layer in the source layers."""
    for i, (name, type, raw) in enumerate(parts.metadata):
        if (
            name.endswith(b"shared_attn.source_layers")
            and type == GGUFValueType.ARRAY
            and len(raw) % 4 == 0
            and len(raw) >= 12
        ):
            layers = list(struct.unpack_from(f"<{len(raw) // 4 - 3}i", raw, 12))
            at = random.randrange(len(layers) + 1)
            layers[at : at + random.randrange(2)] = [random.choice((*range(-2, 8), -(1 << 31), (1 << 31) - 1))]
            if random.random() < 0.3:
                del layers[random.randrange(len(layers))]
            parts.metadata[i] = name, type, raw_array_i32(layers).raw


def shared_mutants(folder: Path, seed: int, count: int) -> Iterator[bytes]:
    """Yield `count` mutants, alternately of an SA file and of a dense file with source layers.

    An unpatched library can load the second kind too, because it ignores the key.
    """
    dense = small_gguf.write_dense(folder / "dense.gguf", n_layer=6)
    shared = export(dense, folder / "shared.gguf", "1-3", force=True)
    mapped = small_gguf.with_metadata(
        dense, folder / "mapped.gguf", **{SOURCE_LAYERS_ARGUMENT: raw_array_i32([0, 1, 1, 1, 4, 5])}
    )
    mutations = (*STRUCTURED, *[_map] * (len(STRUCTURED) // 2))
    streams = [gguf_mutants(base, seed, sys.maxsize, mutations) for base in (shared, mapped)]
    for number in range(count):
        yield next(streams[number % 2])
