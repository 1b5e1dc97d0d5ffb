"""Conversion of Hugging Face folders. tests/faults/test_checkpoint.py has the folders that are refused before it."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from transformers import LlamaForCausalLM

import shareatt_export
from shareatt_export.llamacpp.source import stock_source
from tests.support import tiny_models
from tests.support.faults.checkpoint_folders import checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that passes the checks before conversion; the converter cannot convert it."""
    return checkpoint(tmp_path / "model")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with the spans 6-9."""
    out = tmp_path_factory.mktemp("exported") / "sa.gguf"
    shareatt_export.export(tiny_models.DEMO, "6-9", out)
    return out


def test_bad_spans_are_told_before_the_conversion(run, folder, tmp_path):
    done = run(folder, "--spans", "2-9", "-o", tmp_path / "out.gguf")
    assert done.error == "Error: span '2-9': layer 4 is out of range; this model has layers 0-3"


def test_the_converter_fails_in_one_line(run, folder, tmp_path):
    done = run(folder, "--spans", "0-1", "-o", tmp_path / "out.gguf")
    assert done.status == 1 and done.error.startswith(f"Error: {folder}: convert_hf_to_gguf.py: ")
    assert not list(tmp_path.glob("*out.gguf*")) and not list(tmp_path.glob(".shareatt-*"))


def test_outtype_reaches_the_converter(run, tmp_path):
    sizes = {}
    for outtype in ("q8_0", "F32"):
        out = tmp_path / f"{outtype}.gguf"
        done = run(tiny_models.DEMO, "--spans", "6-9", "-o", out, "--outtype", outtype, "--json")
        assert done.status == 0, done.stderr
        sizes[outtype] = json.loads(done.stdout)["weight_bytes"]["after"]
    assert 3.5 < sizes["F32"] / sizes["q8_0"] < 4


def test_a_copy_of_the_checkpoint_gives_the_same_file(run, exported, tmp_path):
    copy = tmp_path / tiny_models.DEMO.name
    shutil.copytree(tiny_models.DEMO, copy)
    # a pickle that is not read, because the folder has safetensors
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert run(copy, "--spans", "6-9", "-o", tmp_path / "sa.gguf").status == 0
    assert (tmp_path / "sa.gguf").read_bytes() == exported.read_bytes()


def test_a_checkpoint_in_shards_gives_the_same_file(run, exported, tmp_path):
    model = tmp_path / tiny_models.DEMO.name
    LlamaForCausalLM.from_pretrained(tiny_models.DEMO).save_pretrained(model, max_shard_size="3MB")
    for path in tiny_models.DEMO.glob("*token*"):
        shutil.copy(path, model)
    assert len(list(model.glob("model-*.safetensors"))) > 2 and (model / "model.safetensors.index.json").is_file()
    assert run(model, "--spans", "6-9", "-o", tmp_path / "sa.gguf").status == 0
    a, b = ({t.name: t.data for t in gguf.GGUFReader(file).tensors} for file in (exported, tmp_path / "sa.gguf"))
    assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_a_checkout_of_the_users_own(run, exported, tmp_path):
    """--llama-cpp DIR uses the converter of that checkout."""
    arguments = [tiny_models.DEMO, "--spans", "6-9", "-o"]
    assert run(*arguments, tmp_path / "sa.gguf", "--llama-cpp", stock_source()).status == 0
    assert (tmp_path / "sa.gguf").read_bytes() == exported.read_bytes()
    done = run(*arguments, tmp_path / "none.gguf", "--llama-cpp", tmp_path)
    assert done.status == 1
    assert done.error == f"Error: {tmp_path}: not a llama.cpp checkout (src/llama-graph.cpp is missing)"
