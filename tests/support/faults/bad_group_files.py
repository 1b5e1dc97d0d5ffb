"""SA files with a map of KV groups that llama.cpp must refuse: a table of files with one mistake each.

The model has 12 layers of 4 query heads and 2 KV heads. Group 0 of layers 7 and 8 follows that of layer 6, group 1 of
layer 9 is dropped, and layer 3 has no attention.
"""

import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gguf import GGUFValueType

from shareatt_export.formats.gguf_encode import raw_array_i32, raw_u32
from shareatt_export.formats.gguf_header import RawValue
from shareatt_export.formats.gguf_keys import KEY_FORMAT_VERSION
from shareatt_export.formats.gguf_reader import read_header
from tests.support import small_gguf
from tests.support.faults.gguf_bytes import with_tensors

KEY = "llama.attention.shared_attn.source_heads"
ARGUMENT = KEY.replace(".", "__")
SPANS, DROP = "6.0:7.0+8.0", "9.1,3"
N_HEAD = small_gguf.N_HEAD


def changed(**heads: int) -> Callable[[Path, Path], object]:
    """Change sources of heads, given as layer_head=source."""

    def write(source: Path, out: Path) -> object:
        values = list(read_header(source).integers(KEY, small_gguf.N_LAYER * N_HEAD))
        for name, value in heads.items():
            layer, head = map(int, name.removeprefix("h").split("_"))
            values[layer * N_HEAD + head] = value
        return small_gguf.with_metadata(source, out, **{ARGUMENT: raw_array_i32(values)})

    return write


def metadata(**changes: RawValue | None) -> Callable[[Path, Path], object]:
    return partial(small_gguf.with_metadata, **changes)


ARRAY_OF_I64 = RawValue(GGUFValueType.ARRAY, struct.pack("<IQ48q", GGUFValueType.INT64, 48, *range(48)))
VERSION = KEY_FORMAT_VERSION.replace(".", "__")
LAYERS = "llama__attention__shared_attn__source_layers"
# In the file, layer 7 has its own group first, so its heads 0 and 1 are 28 and 29, and its heads 2 and 3 follow.
BAD_FILES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "a map of i64": (
        metadata(
            **{ARGUMENT: RawValue(GGUFValueType.ARRAY, struct.pack("<IQ48q", GGUFValueType.INT64, 48, *range(48)))}
        ),
        f"{KEY}: must be an array of i32",
    ),
    "too short": (
        metadata(**{ARGUMENT: raw_array_i32(range(47))}),
        "has 47 entries, the model has 12 layers of 4 heads",
    ),
    "empty": (metadata(**{ARGUMENT: raw_array_i32([])}), "has 0 entries"),
    "version 1": (metadata(**{VERSION: raw_u32(1)}), f"is 1, but the file has {KEY}"),
    "no version": (metadata(**{VERSION: None}), f"is 1, but the file has {KEY}"),
    "version 3": (metadata(**{VERSION: raw_u32(3)}), "is 3, this runtime knows up to 2"),
    "both maps": (metadata(**{LAYERS: raw_array_i32(range(12))}), "is 2, but the file has llama.attention"),
    "-2": (changed(h7_2=-2, h7_3=-2), "layer 7: source -2 of head 2"),
    "a later layer": (changed(h7_2=4 * 8), "layer 7: source 32 of head 2 is not itself or a head of an earlier layer"),
    "another head of the layer": (changed(h7_2=28), "layer 7: source 28 of head 2 is not itself"),
    "the greatest number": (changed(h7_2=(1 << 31) - 1), "layer 7: source 2147483647 of head 2"),
    "a follower as source": (changed(h8_2=4 * 7 + 2, h8_3=4 * 7 + 3), "does not compute its own attention weights"),
    "a dropped head as source": (changed(h7_2=4 * 3, h7_3=4 * 3), "does not compute its own attention weights"),
    "a head of two minds": (changed(h7_3=-1), "layer 7: heads 2 and 3 have one KV head"),
    "sources in two layers": (changed(h8_3=4 * 5), "layer 8: heads 2 and 3 have one KV head"),
    "dropped heads first": (
        changed(h9_0=-1, h9_1=-1, h9_2=38, h9_3=39),
        "layer 9: head 2 must come before head 1: own heads, followers, dropped heads",
    ),
    "too many rows of Q": (changed(h5_2=-1, h5_3=-1), "blk.5.attn_q.weight"),
    "too few rows of Q": (changed(h7_2=30, h7_3=31), "blk.7.attn_q.weight"),
    "no K": (lambda source, out: with_tensors(source, out, without=["blk.7.attn_k.weight"]), "blk.7.attn_k.weight"),
    "no V": (lambda source, out: with_tensors(source, out, without=["blk.7.attn_v.weight"]), "blk.7.attn_v.weight"),
    "no output": (
        lambda source, out: with_tensors(source, out, without=["blk.9.attn_output.weight"]),
        "blk.9.attn_output.weight",
    ),
}
