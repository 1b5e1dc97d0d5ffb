"""The rows and columns that tensors keep where KV groups follow or are dropped, to the byte."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from shareatt_export.errors import Unsupported
from shareatt_export.formats.gguf_header import TensorInfo
from shareatt_export.formats.gguf_keys import KEY_FORMAT_VERSION, KEY_SOURCE_HEADS, key_source_heads
from shareatt_export.formats.shards import read_model
from shareatt_export.formats.tensor_copies import columns_of, float_rows, raw_rows, whole_copy
from shareatt_export.model.facts import read_facts
from tests.support import small_gguf
from tests.support.exports import export

HEAD, N_REP = small_gguf.N_EMBD // small_gguf.N_HEAD, 2  # numbers in a head; query heads in a group
SPANS, DROP = "6.0:7.0", "6.1,8"  # in layer 7 group 1 comes first


def rows(path, name):
    tensors = read_model(path).tensors
    return raw_rows(whole_copy(tensors[name])) if name in tensors else None


def group(number, heads=1):
    """The rows of a KV group: `heads` heads of it."""
    return np.arange(number * heads * HEAD, (number + 1) * heads * HEAD)


@pytest.mark.parametrize("bias", [False, True])
def test_separate_tensors(tmp_path, bias):
    dense = small_gguf.write_dense(tmp_path / "dense.gguf", bias=bias)
    out = export(dense, tmp_path / "out.gguf", SPANS, drop=DROP)
    for name, kept in {
        "blk.6.attn_q": group(0, N_REP),
        "blk.6.attn_k": group(0),
        "blk.6.attn_v": group(0),
        "blk.7.attn_q": group(1, N_REP),
        "blk.7.attn_k": group(1),
        "blk.7.attn_v": np.concatenate([group(1), group(0)]),
    }.items():
        assert np.array_equal(rows(out, f"{name}.weight"), rows(dense, f"{name}.weight")[kept])
        if bias:
            numbers = rows(dense, f"{name}.bias").reshape(-1, 4)[kept]
            assert np.array_equal(rows(out, f"{name}.bias").reshape(-1, 4), numbers)
    before, after = (rows(path, "blk.7.attn_output.weight").view(np.float32) for path in (dense, out))
    assert np.array_equal(after, before[:, np.concatenate([group(1, N_REP), group(0, N_REP)])])
    left = [name for name in read_model(out).tensors if name.startswith("blk.8.attn_")]
    assert left == ["blk.8.attn_norm.weight"]


def test_a_fused_tensor(tmp_path):
    dense = small_gguf.write_dense(tmp_path / "dense.gguf", fused=True, bias=True)
    out = export(dense, tmp_path / "out.gguf", SPANS, drop=DROP)
    before = rows(dense, "blk.7.attn_qkv.weight")
    q, k = small_gguf.ROWS["attn_q"], small_gguf.ROWS["attn_k"]
    kept = np.concatenate([group(1, N_REP), q + group(1), q + k + group(1), q + k + group(0)])
    assert np.array_equal(rows(out, "blk.7.attn_qkv.weight"), before[kept])
    all_follow = export(dense, tmp_path / "follow.gguf", "6.0:7.0,6.1:7.1", drop="9.0")
    assert np.array_equal(rows(all_follow, "blk.7.attn_v.weight"), before[q + k :])
    assert rows(all_follow, "blk.7.attn_qkv.weight") is None


def test_the_metadata_of_version_2(tmp_path):
    dense = small_gguf.write_dense(tmp_path / "dense.gguf")
    header = read_model(export(dense, tmp_path / "out.gguf", SPANS, drop=DROP))
    facts = read_facts(header)
    assert header.integer(KEY_FORMAT_VERSION) == 2
    assert header.integers(KEY_SOURCE_HEADS, 48)[4 * 7 : 4 * 8] == (24, 25, 30, 31)  # as in the dense model
    assert header.integers(key_source_heads("llama"), 48)[4 * 7 : 4 * 8] == (28, 29, 24, 25)  # own groups first
    kv_of_a_group = 2 * HEAD * 2  # K and V in f16
    assert facts.kv_bytes_per_token(facts.attention) == kv_of_a_group * (24 - 1 - 2) - HEAD * 2


def test_all_heads_of_a_layer_in_their_order_are_a_whole_layer(tmp_path):
    """Whichever way it is written, the file is the same, of version 1."""
    dense = small_gguf.write_dense(tmp_path / "dense.gguf")
    by_groups = export(dense, tmp_path / "groups.gguf", "6.0:7.0,6.1:7.1")
    assert by_groups.read_bytes() == export(dense, tmp_path / "layers.gguf", "6-7").read_bytes()


def test_columns_of_quantised_tensors(tmp_path):
    """A group has 32 columns: one block of q8_0, which is moved as it is."""
    dense = small_gguf.write_dense(tmp_path / "dense.gguf", q8_0=True)
    out = export(dense, tmp_path / "out.gguf", SPANS, drop=DROP)
    before, after = (rows(path, "blk.7.attn_output.weight") for path in (dense, out))
    assert np.array_equal(after, np.concatenate([before[:, 34:], before[:, :34]], axis=1))


@pytest.mark.parametrize("width, expected", [(32, GGMLQuantizationType.Q8_0), (16, GGMLQuantizationType.F16)])
def test_columns_that_are_not_whole_blocks_get_another_type(tmp_path, width, expected):
    """Of four groups with `width` columns in one block of 256, two stay, in another order."""
    values = np.random.default_rng(1).standard_normal((3, 256), np.float32)
    path = tmp_path / "tensor"
    path.write_bytes(gguf.quantize(values, GGMLQuantizationType.Q4_0).tobytes())
    info = TensorInfo("t", (256, 3), GGMLQuantizationType.Q4_0, path, 0, path.stat().st_size)
    kept = ((5 * width, 6 * width), (2 * width, 3 * width))
    copy = columns_of(replace(info, type=GGMLQuantizationType.Q4_0), "t", kept)
    assert copy.recoded == (width < 32)
    k_quant = columns_of(replace(info, type=GGMLQuantizationType.Q4_K), "t", kept)
    assert (k_quant.type, k_quant.recoded, k_quant.shape) == (expected, True, (2 * width, 3))
    if copy.recoded:
        columns = np.concatenate([np.arange(*each) for each in kept])
        before = gguf.dequantize(gguf.quantize(values, GGMLQuantizationType.Q4_0), GGMLQuantizationType.Q4_0)
        assert np.array_equal(float_rows(raw_rows(copy), copy.type), before[:, columns].astype(np.float16))


def test_a_model_that_shares_already(tmp_path):
    dense = small_gguf.write_dense(tmp_path / "dense.gguf")
    out = export(dense, tmp_path / "out.gguf", "6-7")
    with pytest.raises(Unsupported, match="shares attention already"):
        export(out, tmp_path / "more.gguf", "8.0:9.0")
    groups = export(dense, tmp_path / "groups.gguf", "8.0:9.0")
    with pytest.raises(Unsupported, match="shares attention already|shares single"):
        export(groups, tmp_path / "more.gguf", "6-7")
