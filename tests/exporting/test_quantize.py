"""--outtype: llama-quantize changes the weight types; the plan predicts the file size; the runtime runs the file."""

import json
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.formats.shards import read_model
from shareatt_export.formats.weight_types import WEIGHT_TYPES, weight_type
from shareatt_export.llamacpp import runtime
from shareatt_export.model.facts import read_facts
from tests.support import dummy_models, graph_taps, small_gguf, tiny_models

SPANS, MAP = "1-3", (0, 1, 1, 1)
NEED_IMATRIX = ("IQ1_S", "IQ2_XXS", "IQ2_XS")  # the tested types that need an importance matrix


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, built: runtime.RuntimeStatus) -> Path:
    """A model with rows of 256, which every block size divides, and with a vocabulary, which llama-imatrix needs."""
    path = tmp_path_factory.mktemp("dense") / "dense.gguf"
    dummy_models.make("llama", path)
    return path


@pytest.mark.parametrize("outtype", ["Q4_K_M", "q8_0", "f16", "IQ4_XS", "Q2_K", "iq2_xxs", "MXFP4_MOE", "Q3_K"])
@pytest.mark.parametrize("with_imatrix", [False, True])
def test_every_kind_is_predicted_and_runs(run, dense, tmp_path, outtype, with_imatrix):
    options = ["--outtype", outtype, "--threads", 1]
    if with_imatrix:
        options += ["--imatrix", small_gguf.write_imatrix(dense, tmp_path / "imatrix.gguf")]
    out = tmp_path / "out.gguf"
    if not with_imatrix and outtype.upper() in NEED_IMATRIX:
        done = run(dense, "--spans", SPANS, "-o", out, *options)
        assert (
            done.error == f"Error: {dense}: --outtype {outtype.upper()} needs an importance matrix; add --imatrix FILE"
        )
        return
    plan = json.loads(run(dense, "--spans", SPANS, "--dry-run", "--json", *options).stdout)
    done = json.loads(run(dense, "--spans", SPANS, "-o", out, "--json", *options).stdout)
    assert plan["file_bytes"] == [out.stat().st_size] == [of["bytes"] for of in done["outputs"]]
    header = read_header(out)
    assert read_facts(header).attention.source_layers == MAP
    assert header.value("general.file_type") == WEIGHT_TYPES[weight_type(outtype)]
    assert (header.value("quantize.imatrix.file") == "imatrix.gguf") == with_imatrix
    assert np.isfinite(graph_taps.run(out).output).all()


def test_a_checkpoint_to_q4_k_m_in_shards(run, tmp_path):
    """A Hugging Face folder goes through the converter, spans, llama-quantize, shards and the runtime."""
    out = tmp_path / "out.gguf"
    options = ["--spans", "6-9", "--outtype", "Q4_K_M", "--split-max-size", "1M"]
    plan = json.loads(run(tiny_models.DEMO, "--dry-run", "--json", *options).stdout)
    done = run(tiny_models.DEMO, "-o", out, *options)
    files = [Path(line) for line in done.stdout.splitlines()]
    assert [file.stat().st_size for file in files] == plan["file_bytes"] and len(files) == 4
    header = read_model(files[0])
    assert read_facts(header).attention.source_layers[6:10] == (6, 6, 6, 6)
    assert {info.type for info in header.tensors.values()} >= {GGMLQuantizationType.Q5_0, GGMLQuantizationType.Q8_0}
    command = [runtime.tool("llama-completion"), "-m", files[0], "-p", "def ", "-n", "8", "-no-cnv", "--temp", "0"]
    said = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
    assert said.startswith("def ")


def test_a_quantised_gguf_is_given_spans_byte_for_byte(run, dense, tmp_path):
    quantised = tmp_path / "q4.gguf"
    subprocess.run([runtime.tool("llama-quantize"), dense, quantised, "Q4_K_M"], check=True, capture_output=True)
    # the export itself compares the bytes
    assert run(quantised, "--spans", SPANS, "-o", tmp_path / "out.gguf").status == 0
    types = {info.type for info in read_header(tmp_path / "out.gguf").tensors.values()}
    assert types >= {GGMLQuantizationType.F32, GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q6_K}
    assert np.isfinite(graph_taps.run(tmp_path / "out.gguf").output).all()
    done = run(quantised, "--spans", SPANS, "-o", tmp_path / "b.gguf", "--outtype", "q8_0")
    assert "already; without --outtype it stays as it is" in done.error


def test_the_order_does_not_matter(run, dense, tmp_path):
    """Quantisation before the spans and after them gives the same tensors."""
    quantised = tmp_path / "q8.gguf"
    subprocess.run([runtime.tool("llama-quantize"), dense, quantised, "Q8_0"], check=True, capture_output=True)
    run(quantised, "--spans", SPANS, "-o", tmp_path / "a.gguf")
    run(dense, "--spans", SPANS, "-o", tmp_path / "b.gguf", "--outtype", "q8_0")
    a, b = ({t.name: t.data for t in gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors} for name in "ab")
    assert a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_relative_paths(run, dense, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    small_gguf.write_imatrix(dense, tmp_path / "sub" / "imatrix.gguf")
    monkeypatch.chdir(tmp_path)
    done = run(dense, "--spans", SPANS, "-o", "out.gguf", "--outtype", "q4_0", "--imatrix", "sub/imatrix.gguf")
    assert (done.status, done.stdout) == (0, "out.gguf\n")
    assert {path.name for path in tmp_path.iterdir()} == {"sub", "out.gguf"}


def test_faults(run, dense, tmp_path, monkeypatch):
    out = tmp_path / "out.gguf"
    done = run(dense, "--spans", SPANS, "-o", out, "--outtype", "Q4_X")
    assert done.status == 2 and "'Q4_X' is not one of auto, F32, F16" in done.error
    done = run(dense, "--spans", SPANS, "-o", out, "--outtype", "Q4_0", "--imatrix", tmp_path / "none")
    assert done.error == f"Error: {tmp_path / 'none'}: no such file"
    done = run(dense, "--spans", SPANS, "-o", out, "--outtype", "Q4_0", "--imatrix", dense)
    assert f"{dense}: general.type: not an importance matrix; make one with llama-imatrix" in done.error
    monkeypatch.setenv("SHAREATT_EXPORT_HOME", str(tmp_path / "home"))
    done = run(dense, "--spans", SPANS, "-o", out, "--outtype", "Q4_0")
    assert done.error.endswith("is not built yet; run 'shareatt-export runtime build'")
    assert {path.name for path in tmp_path.iterdir()} <= {"home"}
