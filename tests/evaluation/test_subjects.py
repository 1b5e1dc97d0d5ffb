"""What an evaluation compares, beside SA models: the dense model with other weights, and without attention."""

import dataclasses
import json
import re
import tempfile
from collections import namedtuple
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

import shareatt_export
from shareatt_export.errors import BadInput, OutputRefused, ShareattError
from shareatt_export.evaluation import made_files
from shareatt_export.evaluation.evaluate import evaluate
from shareatt_export.evaluation.request import EvaluateRequest
from shareatt_export.evaluation.subjects import Subject, chosen
from shareatt_export.formats.gguf_header import DEFAULT_ALIGNMENT
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.formats.shards import read_model
from shareatt_export.llamacpp.quantize import Quantisation, quantize
from shareatt_export.model.facts import read_facts
from shareatt_export.system import staging
from shareatt_export.system.progress import silent
from tests.support import small_gguf, tiny_models

TEXT = (tiny_models.DEMO / "heldout.txt").read_text()[:20_000]
SMALL = {"n_ctx": 64, "n_windows": 4}


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, which is empty again after each test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


# ---------------------------------------------------------------- weights


def test_quantised_weights_are_smaller_and_lose_something(demo_dense, shared, text):
    done = evaluate(EvaluateRequest(demo_dense, (shared,), text, **SMALL))
    by_name = {score.subject.name: score for score in done.scores}
    assert list(by_name)[-2:] == ["dense, weights Q4_K_M", "dense, weights Q3_K_M"]
    dense, q4, q3 = by_name["dense"], *done.scores[-2:]
    assert dense.file_bytes / 2 > q4.file_bytes > q3.file_bytes
    assert 16 == dense.bits_per_weight > q4.bits_per_weight > q3.bits_per_weight > 3
    assert 0 < q4.kl.value < q3.kl.value < by_name["sa.gguf"].kl.value
    assert q4.subject.kv_bytes_per_token == dense.subject.kv_bytes_per_token
    assert done.subjects.why_no_weights is None


@pytest.mark.parametrize("options", [{"weights": False}, {"baselines": False}])
def test_they_can_be_left_away(demo_dense, shared, text, options):
    done = evaluate(EvaluateRequest(demo_dense, (shared,), text, **SMALL, **options))
    assert not any(score.subject.weights for score in done.scores) and done.subjects.why_no_weights is None


@pytest.mark.parametrize(("type", "made"), [("F32", True), ("BF16", True), ("Q8_0", True), ("Q5_1", False)])
def test_only_better_weights_are_quantised(built, demo_dense, shared, tmp_path, type, made):
    dense = tmp_path / "dense.gguf"
    quantize(demo_dense, dense, Quantisation(type), lambda fraction: None)
    headers = {dense: read_header(dense), shared: read_header(shared)}
    found = chosen(EvaluateRequest(dense, (shared,)), headers)
    assert [subject.weights for subject in found.weights] == (["Q4_K_M", "Q3_K_M"] if made else [])
    reason = "its weights have 6.0 bits each already, and less than 8 bits are not quantised again"
    assert found.why_no_weights == (None if made else reason)


def test_an_alignment_that_llama_quantize_does_not_write(tmp_path):
    dense = small_gguf.write_dense(tmp_path / "dense.gguf")
    header = dataclasses.replace(read_header(dense), alignment=2 * DEFAULT_ALIGNMENT)
    found = chosen(EvaluateRequest(dense, (dense,)), {dense: header})
    assert not found.weights and "general.alignment is 64" in found.why_no_weights


def test_the_command_says_why_there_are_none(run, demo_dense, shared, tmp_path, text):
    dense = tmp_path / "dense.gguf"
    quantize(demo_dense, dense, Quantisation("Q5_1"), lambda fraction: None)
    arguments = ["eval", dense, shared, "--text", text, "--ctx", 64, "--windows", 1]
    reason = "its weights have 6.0 bits each already, and less than 8 bits are not quantised again"
    shown = " ".join(run(*arguments).stdout.split())
    assert f"The dense model is not quantised to Q4_K_M and Q3_K_M: {reason}." in shown
    assert json.loads(run(*arguments, "--json").stdout)["why_no_weights"] == reason


def test_no_room_is_said_before_anything_is_written(demo_dense, shared, text, monkeypatch, temporary):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(OutputRefused) as error:
        evaluate(EvaluateRequest(demo_dense, (shared,), text, **SMALL))
    needed = re.fullmatch(rf"needs (\d+) bytes, {temporary} has 1000", error.value.reason)
    assert 7_180_000 < int(needed[1]) < 7_250_000  # the two files have 7,187,008 bytes
    assert error.value.next_step == "make room, or let TMPDIR name another folder, or use --no-weights"


def test_what_llama_quantize_refuses_names_the_option(demo_dense, shared, text, monkeypatch):
    def refuse(*arguments):
        raise ShareattError("failed", path=demo_dense, field="llama-quantize Q4_K_M")

    monkeypatch.setattr(made_files, "quantize", refuse)
    with pytest.raises(ShareattError, match="llama-quantize Q4_K_M: failed; --no-weights leaves this comparison away"):
        evaluate(EvaluateRequest(demo_dense, (shared,), text, **SMALL))


def test_an_interrupt_leaves_no_file(demo_dense, shared, text, temporary):
    """The fixture looks into the folder for temporary files."""

    def interrupt(what, fraction):
        if what == "evaluating":
            assert len(list(temporary.glob("*/*.gguf"))) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(EvaluateRequest(demo_dense, (shared,), text, **SMALL), interrupt)


# ---------------------------------------------------------------- no attention


def test_no_attention_in_the_layers_that_share(run, demo_dense, shared, text, tmp_path):
    half = shareatt_export.export(demo_dense, "every:2", tmp_path / "half.gguf").files[0]
    arguments = ["eval", demo_dense, shared, half, demo_dense, "--text", text, "--ctx", 64, "--windows", 4]
    data = json.loads(run(*arguments, "--no-weights", "--drop", "--json").stdout)
    names = ["dense, no attention in 7-9", "dense, no attention in 1,3,5,7,9,11", None]
    assert [each["dropped"] for each in data["dropped"]] == names
    assert [score["name"] for score in data["scores"][-2:]] == names[:2]
    dense, *_, three, six = data["scores"]
    assert (three["without_attention"], three["model"]) == ([7, 8, 9], str(demo_dense))
    assert three["kv_bytes_per_token"] == dense["kv_bytes_per_token"] * 9 / 12
    assert six["kv_bytes_per_token"] == dense["kv_bytes_per_token"] / 2
    assert 0.05 < three["kl"]["mean"] < six["kl"]["mean"]


def test_zeros_are_in_their_places_in_shards_too(demo_dense, tmp_path):
    request = shareatt_export.ExportRequest(demo_dense, "6-9", tmp_path / "sa.gguf", split_max_size=2_000_000)
    files = shareatt_export.export(request).files
    assert len(files) > 3
    header = read_model(files[0])
    subject = Subject("sa", files[0], read_facts(header)).without_attention((1, 5, 11))
    with made_files.made_files(header, (subject,), 1, silent) as made:
        copied = read_model(made[subject])
        assert copied.tensors.keys() == header.tensors.keys() and copied.metadata == header.metadata
        for name, info in header.tensors.items():
            is_zero = name in [f"blk.{layer}.attn_output.weight" for layer in (1, 5, 11)]
            before, after = (np.fromfile(of.path, np.uint8, of.n_bytes, offset=of.offset)
                             for of in (info, copied.tensors[name]))  # fmt: skip
            assert not after.any() if is_zero else np.array_equal(before, after)


@pytest.mark.parametrize("type", [type for type in GGMLQuantizationType if type in gguf.quants._type_traits])
def test_bytes_of_zeros_are_numbers_of_zero(type):
    _, block_bytes = gguf.GGML_QUANT_SIZES[type]
    assert not gguf.dequantize(np.zeros((2, block_bytes), np.uint8), type).any()


def test_a_model_of_other_layers(demo_dense, tmp_path):
    other = small_gguf.write_dense(tmp_path / "other.gguf", n_layer=4)
    request = EvaluateRequest(demo_dense, (other,), drop=True)
    with pytest.raises(BadInput) as error:
        chosen(request, {Path(path): read_header(path) for path in (demo_dense, other)})
    assert str(error.value) == (
        f"{other}: --drop: has 4 layers, {demo_dense} has 12; "
        "compare it with the dense model that it was made from"
    )  # fmt: skip
