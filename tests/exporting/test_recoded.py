"""Maps of KV groups on K-quants, whose blocks are wider than a head: W_O is encoded anew."""

import json
import subprocess
from pathlib import Path

import pytest

from shareatt_export.formats.shards import read_model
from shareatt_export.llamacpp import runtime
from shareatt_export.llamacpp.engine import Context, Model
from tests.support import group_parity, parity, tiny_models

MAP = ("--spans", "1.0:2.1+3.2,4.1:5.0", "--drop", "3.1,6.0-1")
RECODED = [f"blk.{layer}.attn_output.weight" for layer in (2, 3, 5, 6)]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, built: runtime.RuntimeStatus) -> Path:
    """A model with four KV groups of 64 columns in each block of Q4_K."""
    folder = tmp_path_factory.mktemp("dense")
    case, out = parity.make_case("MHA", "f32", folder, parity.WIDE), folder / "q4_k.gguf"
    command = [built.bin / "llama-quantize", "--pure", case.dense, out, "Q4_K"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return out


def test_it_computes_what_the_dense_file_computes_with_that_map(dense, tmp_path):
    """Q4_K and Q8_0 multiply with differently rounded activations, which is all of the difference."""
    for name, make in group_parity.MAPS["MHA"].items():
        attention = make("MHA")
        shared = group_parity.written(dense, attention, tmp_path / "groups.gguf")
        with Model(parity.lib(), dense) as model:
            model.share_heads(attention.flat())
            with Context(model, False, n_ctx=512, n_batch=256, n_ubatch=256, type_k=0, type_v=0) as context:
                tried = parity.MODES["prefill"].run(context)
        assert parity.nmse(tried, parity.logits(shared)) < 1e-3, name


def test_the_plan_names_the_tensors_and_verify_checks_them(run, dense, tmp_path):
    plan = json.loads(run(dense, *MAP, "--dry-run", "--json").stdout)
    assert plan["recoded_tensors"] == [{"tensor": name, "from": "Q4_K", "to": "Q8_0"} for name in RECODED]
    shown = " ".join(run(dense, *MAP, "--dry-run").stdout.split())
    assert "encodes the output projection of layers 2, 3, 5, 6 anew as Q8_0: the columns" in shown
    out = tmp_path / "out.gguf"
    assert run(dense, *MAP, "-o", out).status == 0
    assert out.stat().st_size == plan["file_bytes"][0]
    assert run("verify", out, "--against", dense).status == 0
    info = read_model(out).tensors[RECODED[1]]
    with out.open("r+b") as file:
        file.seek(info.offset + info.n_bytes - 1)
        last = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([last[0] ^ 1]))
    done = run("verify", out, "--against", dense)
    assert done.status != 0 and f"tensor '{RECODED[1]}': its bytes differ" in done.error


def test_it_can_be_refitted(run, dense, tmp_path):
    """Then W_O has values of its own in that type."""
    text, plain, fitted = (tmp_path / name for name in ("text.txt", "plain.gguf", "fitted.gguf"))
    text.write_text((tiny_models.DEMO / "heldout.txt").read_text()[:20_000])
    assert run(dense, *MAP, "-o", plain).status == 0
    assert run(dense, *MAP, "--refit", "--text", text, "-o", fitted).status == 0
    assert run("verify", fitted, "--against", dense).status == 0
    arguments = ("--text", text, "--ctx", 256, "--windows", 8, "--no-baselines", "--json")
    scores = json.loads(run("eval", dense, plain, fitted, *arguments).stdout)["scores"]
    assert scores[2]["kl"]["mean"] < 0.8 * scores[1]["kl"]["mean"]
