"""Conversion of Hugging Face folders. tests/faults/test_checkpoint.py has the folders that are refused before it."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from transformers import LlamaForCausalLM

from shareatt_export.llamacpp.source import stock_source
from tests.support import tiny_models
from tests.support.faults.checkpoint_folders import checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that passes the checks before conversion; the converter cannot convert it."""
    return checkpoint(tmp_path / "model")


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


def test_a_copy_of_the_checkpoint_gives_the_same_file(run, tmp_path):
    copy = tmp_path / tiny_models.DEMO.name
    shutil.copytree(tiny_models.DEMO, copy)
    # a pickle that is not read, because the folder has safetensors
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    for model, out in ((tiny_models.DEMO, tmp_path / "a.gguf"), (copy, tmp_path / "b.gguf")):
        assert run(model, "--spans", "6-9", "-o", out).status == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_checkpoint_in_shards_gives_the_same_file(run, tmp_path):
    model = tmp_path / tiny_models.DEMO.name
    LlamaForCausalLM.from_pretrained(tiny_models.DEMO).save_pretrained(model, max_shard_size="3MB")
    for path in tiny_models.DEMO.glob("*token*"):
        shutil.copy(path, model)
    assert len(list(model.glob("model-*.safetensors"))) > 2 and (model / "model.safetensors.index.json").is_file()
    for folder, out in ((tiny_models.DEMO, tmp_path / "a.gguf"), (model, tmp_path / "b.gguf")):
        assert run(folder, "--spans", "6-9", "-o", out).status == 0
    a, b = ({t.name: t.data for t in gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors} for name in "ab")
    assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_a_checkout_of_the_users_own(run, tmp_path):
    """--llama-cpp DIR uses the converter of that checkout."""
    for name, extra in (("a", []), ("b", ["--llama-cpp", stock_source()])):
        assert run(tiny_models.DEMO, "--spans", "6-9", "-o", tmp_path / name, *extra).status == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    done = run(tiny_models.DEMO, "--spans", "6-9", "-o", tmp_path / "c", "--llama-cpp", tmp_path)
    assert done.status == 1
    assert done.error == f"Error: {tmp_path}: not a llama.cpp checkout (src/llama-graph.cpp is missing)"
