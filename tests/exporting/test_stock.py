"""`shareatt-export stock`: unpatched llama.cpp computes what torch computes of a model whose KV groups are dropped."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

import shareatt_export
from shareatt_export.errors import Unsupported
from shareatt_export.exporting.stock import write_stock
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.llamacpp import runtime
from shareatt_export.model.facts import read_facts
from shareatt_export.model.map_text import parse_map
from shareatt_export.plan import stock
from tests.support import group_parity, model_families, parity, small_gguf, tiny_models

DROPPED = "1.0,3,6.1,7"


@pytest.fixture(scope="module")
def cases(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    return {
        "llama": parity.make_case("GQA", "f32", folder),
        "qwen2": model_families.make_case("qwen2", folder),  # biases of Q, K and V, and another order of rows
    }


@pytest.fixture(params=["llama", "qwen2"])
def case(request, cases):
    return cases[request.param]


def dropped(case, folder):
    facts = read_facts(read_header(case.dense))
    attention = parse_map(None, DROPPED, facts.dense_attention, "first", facts.is_swa)
    return attention, group_parity.written(case.dense, attention, folder / "sa.gguf")


def errors(case, attention, file, folder):
    """Return the NMSE of a file in the unpatched library against torch, by the way of decoding."""
    built, unpatched, out = runtime.require(), runtime.require_built(patched=False), folder / "logits.npz"
    arguments = (built.python, unpatched.bin, file, out, "f32", "plain")
    command = [sys.executable, "-m", "tests.support.unpatched_child", *arguments]
    subprocess.run(list(map(str, command)), check=True, cwd=Path(__file__).parents[2])
    logits = np.load(out)
    return {
        mode: parity.nmse(logits[mode], group_parity.expected(case, attention, way.sequence))
        for mode, way in parity.MODES.items()
    }


def test_unpatched_llama_cpp_is_the_reference(case, tmp_path):
    attention, sa = dropped(case, tmp_path)
    write_stock(sa, out := tmp_path / "stock.gguf")
    found = errors(case, attention, out, tmp_path)
    assert max(found.values()) <= parity.TOLERANCE["f32"], found
    assert min(errors(case, attention, case.dense, tmp_path).values()) > 100 * parity.TOLERANCE["f16"]
    facts, before = read_facts(read_header(out)), read_facts(read_header(sa))
    assert facts.arch == "deci" and not facts.is_shared
    assert facts.kv_bytes_per_token(facts.attention) == before.kv_bytes_per_token(before.attention)


def test_rows_in_the_order_of_qwen2_are_wrong(cases, tmp_path, monkeypatch):
    monkeypatch.setattr(stock, "ROTATES_HALVES", {"qwen2": False})
    attention, sa = dropped(cases["qwen2"], tmp_path)
    write_stock(sa, out := tmp_path / "stock.gguf")
    assert min(errors(cases["qwen2"], attention, out, tmp_path).values()) > 100 * parity.TOLERANCE["f16"]


def test_the_command(run, tmp_path):
    dense = small_gguf.write_dense(tmp_path / "dense.gguf", q8_0=True)
    sa, out = tmp_path / "sa.gguf", tmp_path / "stock.gguf"
    assert run(dense, "--drop", "2,4.0", "-o", sa).status == 0
    before = {tensor.name: tensor.data for tensor in gguf.GGUFReader(sa).tensors}
    assert run("stock", sa, "-o", out).stdout == f"{out}\n"
    after = {tensor.name: tensor.data for tensor in gguf.GGUFReader(out).tensors}
    assert before.keys() - after.keys() == {"blk.2.attn_norm.weight"}
    assert all(np.array_equal(data, before[name]) for name, data in after.items())
    fields = {key: field.contents() for key, field in gguf.GGUFReader(out).fields.items()}
    assert fields["general.architecture"] == "deci" and not any("shared_attn" in key for key in fields)
    facts = read_facts(read_header(dense))
    assert fields["deci.attention.head_count_kv"][2] == 0 < fields["deci.attention.head_count_kv"][4]
    assert fields["deci.attention.head_count_kv"][4] < facts.n_head_kv[4] == fields["deci.attention.head_count_kv"][0]
    assert "exists already; use --force" in run("stock", sa, "-o", out).error
    assert json.loads(run("stock", sa, "-o", out, "--force", "--json").stdout)["bytes"] == out.stat().st_size
    assert run("stock", sa, "-o", sa, "--force").status == 1 and read_facts(read_header(sa)).is_shared


def test_a_stock_file_can_be_exported_again(run, demo_dense, tmp_path):
    """It has nothing of the SA file's record, which would say of the next file what is not so."""
    sa, out, again = tmp_path / "sa.gguf", tmp_path / "stock.gguf", tmp_path / "again.gguf"
    text = tiny_models.DEMO / "LICENSE"
    assert run(demo_dense, "--drop", "2,4.0", "--refit", "--text", text, "-o", sa).status == 0
    assert run("stock", sa, "-o", out).status == 0
    assert not any(key.startswith("shareatt.") for key in read_header(out).metadata)
    assert run(out, "--drop", "5", "-o", again).status == 0
    assert run("verify", again, "--against", out).status == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"spans": "6-9"}, "KV group 7.0 follows another layer; drop groups, and let none follow"),
        ({"drop": "0"}, "layer 0 has no heads, whose size llama.cpp reads there; keep a KV group there"),
    ],
)
def test_maps_that_need_the_patch(tmp_path, options, reason):
    dense = small_gguf.write_dense(tmp_path / "dense.gguf")
    (sa,) = shareatt_export.export(dense, out=tmp_path / "sa.gguf", **options).files
    with pytest.raises(Unsupported, match=reason):
        write_stock(sa, tmp_path / "stock.gguf")
    assert not (tmp_path / "stock.gguf").exists()


@pytest.mark.parametrize(
    ("dense", "reason"),
    [
        ({"arch": "qwen3"}, "is 'qwen3', and this is known of llama, qwen2 only"),
        ({"llama_softcap": "50"}, "metadata key 'llama.softcap': 'deci' is not known to have it"),
        ({"fused": True}, "tensor 'blk.0.attn_qkv.weight': 'deci' is not known to have it"),
        ({"arch": "qwen2", "down_bias": {3: np.zeros(64, np.float32)}}, "tensor 'blk.3.ffn_down.bias': 'deci'"),
    ],
)
def test_models_that_deci_does_not_have(tmp_path, dense, reason):
    model = small_gguf.write_dense(tmp_path / "dense.gguf", **dense)
    (sa,) = shareatt_export.export(model, drop="2", out=tmp_path / "sa.gguf").files
    with pytest.raises(Unsupported, match=reason):
        write_stock(sa, tmp_path / "stock.gguf")
    with pytest.raises(Unsupported, match="qwen2 only" if dense.get("arch") == "qwen3" else "lacks no KV groups"):
        write_stock(model, tmp_path / "stock.gguf")


def test_heads_of_several_sizes(tmp_path):
    """'deci' has one size for Q, K and V, all of which RoPE rotates."""
    model = small_gguf.write_dense(tmp_path / "dense.gguf")
    (sa,) = shareatt_export.export(model, drop="2", out=tmp_path / "sa.gguf").files
    header = read_header(sa)
    with pytest.raises(Unsupported, match="V 8, and RoPE rotates 16; 'deci' has one size for all"):
        stock.stock_file(header, replace(read_facts(header), head_dim_v=8))
