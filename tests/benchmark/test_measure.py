"""`shareatt-export bench` on a small model: settings, JSON, plot, table and refusals."""

import json

import pytest

from shareatt_export.benchmark.request import BenchRequest
from shareatt_export.benchmark.settings import UNLIMITED, settings_of
from shareatt_export.cli import output
from shareatt_export.llamacpp import runtime
from shareatt_export.model.synthetic import ModelShape, write_random

QUICK = ("--depths", "0,200", "--rounds", "1", "--prompt", "16", "--generate", "2", "--threads", "1")


# ---------------------------------------------------------------- statistics

ONE_THREAD = {"n_threads": 1, "n_threads_batch": 1}
ON, OFF, KERNELS, SA = "dense, flash on", "dense, flash off", "dense, SA kernels", "SA"


def test_settings():
    def names(**options):
        return [setting.name for setting in settings_of(BenchRequest("dense.gguf", "sa.gguf", **options))]

    assert names() == [ON, OFF, KERNELS, SA]
    assert names(p_bytes=(3 << 20, UNLIMITED)) == [ON, OFF, KERNELS, SA, "SA, P 3 MiB", "SA, P unlimited"]
    assert names(type_v="q8_0") == [ON, KERNELS, SA] and names(type_v="q8_0", gpu_layers=-1) == [ON, SA]


# ---------------------------------------------------------------- the command


def test_bench_as_json_and_as_a_plot(run, files, tmp_path):
    done = run("bench", *files, *QUICK, "--p-bytes", "0", "--json", "--plot", tmp_path / "out.png")
    assert done.status == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["settings"] == [ON, OFF, KERNELS, SA, "SA, P 0 MiB"] and data["spans"] == "6-9" and data["n_ctx"] == 256
    seen = {(row["what"], row["depth"]): row for row in data["rows"]}
    assert set(seen) == {
        *((what, depth) for what in ("prefill", "decode") for depth in (0, 200)),
        ("prefill attention", 200),
        ("decode attention", 200),
        *((what, None) for what in ("KV cache", "compute buffers", "peak memory", "peak anonymous memory")),
    }
    for row in seen.values():
        assert set(row["values"]) == set(data["settings"]) and min(row["values"].values()) > 0
        assert set(row["ratios"]) == {KERNELS, SA, "SA, P 0 MiB"} and row["baseline"] in (ON, OFF)
        assert set(row["sharing"]) == {SA, "SA, P 0 MiB"}
    kv = seen["KV cache", None]["values"]
    saved = 3 * 64 * 2 * data["n_ctx"]
    assert kv[ON] - kv[SA] == pytest.approx(saved, abs=2**20 / 100)  # the log has two decimals of a MiB
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert "attention at depth 200: " in done.stderr


def test_bench_as_a_table_with_quantised_cache(run, files):
    done = run("bench", *files, *QUICK[2:], "--depths", "0", "--ctk", "q8_0", "--ctv", "q8_0", "-q")
    assert (done.status, done.stderr) == (0, "")
    assert "KV cache, MiB" in done.stdout and "flash off" not in done.stdout


def test_files_that_are_no_pair(run, files, tmp_path):
    dense, sa = files
    write_random(tmp_path / "other.gguf", ModelShape(12, 128, 4, 2, 32, 128, n_vocab=96))
    for arguments, message in (
        ((sa, sa), f"{sa}: shares attention; the first argument must be the dense model"),
        ((dense, dense), f"{dense}: shares no attention; make an SA model with"),
        ((tmp_path / "other.gguf", sa), f"{sa}: shareatt.source.blake3: was not made from {tmp_path / 'other.gguf'}"),
        ((tmp_path / "none.gguf", sa), f"{tmp_path / 'none.gguf'}: no such file"),
    ):
        done = run("bench", *arguments, *QUICK)
        assert (done.status, done.stdout) == (1, "") and done.error.startswith(f"Error: {message}")


@pytest.mark.parametrize("option", [("--depths", "0,x"), ("--depths", ""), ("--ctk", "q3_k"), ("--rounds", "0")])
def test_usage(run, files, option):
    assert run("bench", *files, *option).status == 2


def test_the_unpatched_library_is_asked_for(run, files, tmp_path, monkeypatch):
    built = runtime.require_built()
    (tmp_path / built.root.name).symlink_to(built.root)
    monkeypatch.setenv("SHAREATT_EXPORT_HOME", str(tmp_path))
    message = "the unpatched llama.cpp is not built yet; run 'shareatt-export runtime build --unpatched'"
    assert run("bench", *files, *QUICK).error == f"Error: {message}"


def test_matplotlib_is_asked_for_before_anything_is_measured(run, files, tmp_path, monkeypatch):
    monkeypatch.setattr(output, "find_spec", lambda name: None)
    done = run("bench", *files, *QUICK, "--plot", tmp_path / "out.png")
    assert done.error == "Error: matplotlib is needed for --plot; pip install 'shareatt-export[plot]'"
    assert done.stderr.count("\n") == 1
