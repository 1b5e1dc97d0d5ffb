"""GGUF files whose tensors contradict the metadata, or that cannot share attention: refused with file and field."""

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from shareatt_export.formats.gguf_encode import raw_array_i32, raw_string, raw_string_array, raw_u32
from shareatt_export.formats.gguf_header import RawValue
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.model.architectures import REFUSED
from tests.support import small_gguf
from tests.support.faults.gguf_bytes import with_tensors

pytestmark = pytest.mark.fault("F")

F32 = gguf.GGMLQuantizationType.F32
DAMAGED = "the file is damaged: get it or make it again"
HEADS, KV_HEADS = "llama__attention__head_count", "llama__attention__head_count_kv"
MAP = "llama__attention__shared_attn__source_layers"


def raw_i32(number: int) -> RawValue:
    return RawValue(gguf.GGUFValueType.INT32, struct.pack("<i", number))


def raw_f32(number: float) -> RawValue:
    return RawValue(gguf.GGUFValueType.FLOAT32, struct.pack("<f", number))


METADATA: dict[str, tuple[dict[str, RawValue | None], str, str]] = {
    "another architecture": ({"general__architecture": raw_string("gpt2")}, "gpt2.block_count: expected an", DAMAGED),
    "no architecture": ({"general__architecture": None}, "general.architecture: expected a string", DAMAGED),
    "an empty architecture": (
        {"general__architecture": raw_string("")},
        "general.architecture: '' is not",
        "(supported",
    ),
    "a long architecture": ({"general__architecture": raw_string("x" * 10_000)}, "architecture: 'xxx", "(supported"),
    "no layer count": ({"llama__block_count": None}, "llama.block_count: expected an integer", DAMAGED),
    "no layers": ({"llama__block_count": raw_u32(0)}, "llama.block_count: 0 layers", DAMAGED),
    "513 layers": ({"llama__block_count": raw_u32(513)}, "llama.block_count: 513 layers", DAMAGED),
    "-1 layers": ({"llama__block_count": raw_i32(-1)}, "llama.block_count: -1 layers", DAMAGED),
    "12.0 layers": ({"llama__block_count": raw_f32(12)}, "llama.block_count: expected an integer", DAMAGED),
    "one layer more than tensors": (
        {"llama__block_count": raw_u32(13)},
        "block_count: 13, but there is no tensor of",
        DAMAGED,
    ),
    "one layer less than tensors": (
        {"llama__block_count": raw_u32(11)},
        "block_count: 11, but there are tensors of",
        DAMAGED,
    ),
    "heads as text": ({HEADS: raw_string("4")}, "head_count: expected an integer, found str", DAMAGED),
    "no heads": ({HEADS: raw_u32(0)}, "no layer of the map has attention heads", "choose other layers"),
    "a million heads": ({HEADS: raw_u32(1 << 20)}, "head_count: 1048576 heads, at most 1024 are", DAMAGED),
    "2^31 heads": ({HEADS: raw_u32(1 << 31)}, "llama.attention.head_count: 2147483648 is not", DAMAGED),
    "heads of too few layers": ({HEADS: raw_array_i32([4] * 11)}, "head_count: expected 12 integers", DAMAGED),
    "heads of strings": ({HEADS: raw_string_array(["4"] * 12)}, "head_count: expected 12 integers", DAMAGED),
    "more heads than the embedding has": ({HEADS: raw_u32(65)}, "layer 6: has no attention heads", "choose other"),
    "twice the heads": ({HEADS: raw_u32(8)}, "tensor 'blk.6.attn_k.weight': 32 rows, expected 16", DAMAGED),
    "-1 KV heads": ({KV_HEADS: raw_i32(-1)}, "head_count_kv: -1 is not possible", DAMAGED),
    "half the KV heads": ({KV_HEADS: raw_u32(1)}, "tensor 'blk.6.attn_k.weight': 32 rows, expected 16", DAMAGED),
    "other heads in a follower": (
        {HEADS: raw_array_i32([4] * 8 + [2] + [4] * 3)},
        "layer 8: has 2 query and 2 KV heads",
        "choose other layers",
    ),
    "other KV heads in a follower": (
        {KV_HEADS: raw_array_i32([2] * 7 + [4] + [2] * 4)},
        "layer 7: has 4 query and 4 KV heads",
        "choose other layers",
    ),
    "an embedding of -5": ({"llama__embedding_length": raw_i32(-5)}, "llama.embedding_length: -5 is not", DAMAGED),
    "no embedding": ({"llama__embedding_length": None}, "llama.embedding_length: expected an integer", DAMAGED),
    "keys of another length": (
        {"llama__attention__key_length": raw_u32(8)},
        "attn_q.weight': 64 rows, expected",
        DAMAGED,
    ),
    "values of another length": ({"llama__attention__value_length": raw_u32(8)}, "attn_v.weight': 32 rows", DAMAGED),
    "no context length": ({"llama__context_length": None}, "llama.context_length: expected an integer", DAMAGED),
    "all layers predict further tokens": (
        {"llama__nextn_predict_layers": raw_u32(12)},
        "llama.nextn_predict_layers: 12 of 12 layers",
        DAMAGED,
    ),
    "followers that predict further tokens": (
        {"llama__nextn_predict_layers": raw_u32(3)},
        "layer 9: predicts further tokens, as all from 9 on",
        "choose other layers",
    ),
    "a map that is no array": ({MAP: raw_u32(0)}, "source_layers: must be an array of i32", DAMAGED),
    "a map that is short": ({MAP: raw_array_i32(range(11))}, "source_layers: expected 12 integers", DAMAGED),
    "a map ahead": ({MAP: raw_array_i32([1, *range(1, 12)])}, "layer 0: source 1 is not a layer at or", DAMAGED),
    "a map to a follower": ({MAP: raw_array_i32([0, 0, 1, *range(3, 12)])}, "layer 2: source 1 does not", DAMAGED),
    "a later format": (
        {MAP: raw_array_i32(range(12)), "shareatt__format_version": raw_u32(3)},
        "shareatt.format_version: is 3",
        "upgrade it",
    ),
    "a name that is a number": ({"general__name": raw_u32(1)}, "general.name: expected a string", DAMAGED),
    "an identity that is a number": (
        {MAP: raw_array_i32([0, 0, *range(2, 12)]), "shareatt__source__blake3": raw_u32(1)},
        "shareatt.source.blake3: expected a string",
        DAMAGED,
    ),
    "an identity of other letters": (
        {MAP: raw_array_i32([0, 0, *range(2, 12)]), "shareatt__source__blake3": raw_string("\x1b" * 64)},
        "shareatt.source.blake3: expected 64 hexadecimal digits",
        DAMAGED,
    ),
}
TENSORS: dict[str, tuple[Callable[[Path, Path], Path], str, str]] = {
    "no query in a follower": (
        lambda dense, bad: with_tensors(dense, bad, ["blk.8.attn_q.weight"]),
        "tensor 'blk.8.attn_q.weight': is missing, but layer 8 shares attention",
        DAMAGED,
    ),
    "no key in the source": (
        lambda dense, bad: with_tensors(dense, bad, ["blk.6.attn_k.weight"]),
        "tensor 'blk.6.attn_k.weight': is missing",
        DAMAGED,
    ),
    "no values in a follower": (
        lambda dense, bad: with_tensors(dense, bad, ["blk.9.attn_v.weight"]),
        "tensor 'blk.9.attn_v.weight': is missing",
        DAMAGED,
    ),
    "values of another width": (
        lambda dense, bad: with_tensors(dense, bad, ["blk.9.attn_v.weight"], blk__9__attn_v__weight=((64, 16), F32)),
        "tensor 'blk.9.attn_v.weight': 16 rows, expected 32",
        DAMAGED,
    ),
    "a layer of nothing": (
        lambda dense, bad: with_tensors(
            dense, bad, [name for name in read_header(dense).tensors if name.startswith("blk.3.")]
        ),
        "llama.block_count: 12, but there is no tensor of layer 3",
        DAMAGED,
    ),
    "a layer further on": (
        lambda dense, bad: with_tensors(dense, bad, blk__12__attn_norm__weight=((64,), F32)),
        "llama.block_count: 12, but there are tensors of layer 12",
        DAMAGED,
    ),
    "a fused tensor of too few rows": (
        lambda dense, bad: with_tensors(
            dense, bad, [f"blk.8.attn_{x}.weight" for x in "qkv"], blk__8__attn_qkv__weight=((64, 100), F32)
        ),
        "tensor 'blk.8.attn_qkv.weight': 100 rows, expected 128",
        DAMAGED,
    ),
    "a query of two tensors": (
        lambda dense, bad: with_tensors(dense, bad, blk__8__attn_q_a__weight=((64, 8), F32)),
        "tensor 'blk.8.attn_q_a.weight': is not known in a layer that shares attention",
        "choose other layers",
    ),
}


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return small_gguf.write_dense(tmp_path / "dense.gguf")


@pytest.mark.parametrize("name", METADATA)
def test_metadata(refuses, dense, tmp_path, name):
    change, field, step = METADATA[name]
    bad = small_gguf.with_metadata(dense, tmp_path / "bad.gguf", **change)
    error = refuses(bad, "--spans", "6-9", "-o", tmp_path / "out.gguf")
    assert str(bad) in error and field in error and step in error


@pytest.mark.parametrize("name", TENSORS)
def test_tensors(refuses, dense, tmp_path, name):
    build, field, step = TENSORS[name]
    bad = build(dense, tmp_path / "bad.gguf")
    error = refuses(bad, "--spans", "6-9", "-o", tmp_path / "out.gguf")
    assert str(bad) in error and field in error and step in error


@pytest.mark.parametrize("arch", ["deepseek2", "mamba2", "gemma3n", "openelm", "t5", "clip", "kaiju"])
def test_architectures(refuses, dense, tmp_path, arch):
    keys = {
        key.replace("llama.", f"{arch}.").replace(".", "__"): raw for key, raw in read_header(dense).metadata.items()
    }
    bad = small_gguf.with_metadata(dense, tmp_path / "bad.gguf", **keys | {"general__architecture": raw_string(arch)})
    error = refuses(bad, "--spans", "6-9", "-o", tmp_path / "out.gguf")
    why = f"supported: {REFUSED[arch]}" if arch in REFUSED else "known to this version"
    assert f"{bad}: general.architecture: '{arch}' is not {why} (supported: afmoe" in error


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ("8-10", "span '8-10': layer 8 reuses the attention weights of layer 6 already"),
        ("2:8", "span '2:8': layer 8 reuses the attention weights of layer 6 already"),
        ("5-6", "span '5-6': layer 6 cannot be a follower"),
    ],
)
def test_more_spans_may_not_touch_what_is_shared(run, refuses, dense, tmp_path, spans, message):
    shared = tmp_path / "shared.gguf"
    assert run(dense, "--spans", "6-9", "-o", shared).status == 0
    assert f"Error: {message}" in refuses(shared, "--spans", spans, "-o", tmp_path / "out.gguf")


PATTERN = "gemma2__attention__sliding_window_pattern"
WINDOWS: dict[str, tuple[dict[str, RawValue], str]] = {
    "a period of -1": ({PATTERN: raw_i32(-1)}, "sliding_window_pattern: -1 is not possible"),
    "a pattern of strings": ({PATTERN: raw_string_array(["x"] * 12)}, "sliding_window_pattern: expected 12 truth"),
    "a pattern that is short": ({PATTERN: raw_array_i32([1])}, "sliding_window_pattern: expected 12 truth values"),
    "a window of -1": ({"gemma2__attention__sliding_window": raw_i32(-1)}, "sliding_window: -1 is not possible"),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_sliding_windows(refuses, tmp_path, name):
    change, field = WINDOWS[name]
    dense = small_gguf.write_dense(tmp_path / "dense.gguf", arch="gemma2")
    bad = small_gguf.with_metadata(dense, tmp_path / "bad.gguf", **change)
    error = refuses(bad, "--spans", "2-7", "-o", tmp_path / "out.gguf")
    assert str(bad) in error and field in error and DAMAGED in error


def test_two_layers_that_attend_to_something_else(refuses, tmp_path):
    dense = small_gguf.write_dense(tmp_path / "dense.gguf", arch="gemma2")
    error = refuses(dense, "--spans", "6:7", "-o", tmp_path / "out.gguf")
    assert "span '6-7': only one of the layers 6 and 7 has a sliding window" in error
