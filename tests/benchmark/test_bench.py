"""`shareatt-export bench`: its statistics on made-up seconds, its worker, and the command on a small model."""

import io
import json
import time

import pytest
from rich.console import Console

from shareatt_export.benchmark import measure, settings
from shareatt_export.benchmark.request import BenchRequest
from shareatt_export.benchmark.rows import Ratio, as_dict, rows
from shareatt_export.benchmark.worker import PIECE, NodeClock, Worker, whole_call_timer
from shareatt_export.benchmark.worker_process import WorkerProcess
from shareatt_export.cli import bench_report, output
from shareatt_export.errors import RuntimeProblem
from shareatt_export.formats.gguf_header import read_header
from shareatt_export.llamacpp import runtime
from shareatt_export.llamacpp.engine import Context, Model, Token
from shareatt_export.model.costs import read_weights
from shareatt_export.model.facts import read_facts
from shareatt_export.model.synthetic import ModelShape, write_random
from tests.support import parity
from tests.support.exports import export

SHAPE = ModelShape(n_layer=12, n_embd=128, n_head=4, n_head_kv=2, head_dim=32, n_ff=128, n_vocab=64)
QUICK = ("--depths", "0,200", "--rounds", "1", "--prompt", "16", "--generate", "2", "--threads", "1")


@pytest.fixture(scope="module")
def files(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    write_random(folder / "dense.gguf", SHAPE)
    return folder / "dense.gguf", export(folder / "dense.gguf", folder / "shared.gguf")  # spans 6-9


# ---------------------------------------------------------------- statistics

ONE_THREAD = {"n_threads": 1, "n_threads_batch": 1}
ON, OFF, SA = "dense, flash on", "dense, flash off", "SA"


@pytest.fixture
def measured(files):
    """Three rounds in which everything became twice as slow, one after the other."""
    headers = [read_header(file) for file in files]
    pair = settings.ModelPair(*map(read_facts, headers), *map(read_weights, headers))
    request = BenchRequest(*files, depths=(0, 64), rounds=3)
    seconds = {}
    for depth in request.depths:
        seconds["decode", depth] = {ON: [0.10, 0.20, 0.40], OFF: [0.12, 0.30, 0.60], SA: [0.08, 0.16, 0.20]}
        seconds["prefill", depth] = {ON: [3.0, 3.0, 3.0], OFF: [2.0, 2.0, 2.0], SA: [4.0, 1.0, 2.0]}
    layers = dict.fromkeys(range(12), 0.004)
    follower = layers | {7: 0.001, 8: 0.001, 9: 0.002}
    slow = dict.fromkeys(range(12), 0.008)
    memory = {
        ON: {"rss": 90, "anonymous": 50},
        OFF: {"rss": 80, "anonymous": 60},
        SA: {"rss": 72, "anonymous": 45},
    }
    return measure.Measured(
        request,
        pair,
        settings.settings_of(request),
        seconds,
        attention={("decode", 64): {ON: [layers, layers, slow], OFF: [layers] * 3, SA: [follower] * 3}},
        buffers={name: {"kv": kv, "compute": 10} for name, kv in ((ON, 800), (OFF, 800), (SA, 700))},
        memory=memory,
    )


def test_ratios_are_of_the_same_round_and_to_the_better_dense_setting(measured):
    by_name = {(row.what, row.depth): row for row in rows(measured)}
    decode = by_name["decode", 64]
    assert (decode.baseline, decode.values[ON], decode.values[SA]) == (ON, 5.0, 1 / 0.16)
    assert decode.ratios == {SA: Ratio(0.10 / 0.08, 0.10 / 0.08, 2.0)}
    prefill = by_name["prefill", 64]
    assert prefill.baseline == OFF and prefill.ratios == {SA: Ratio(1.0, 0.5, 2.0)}
    attention = by_name["decode attention", 64]
    assert attention.baseline == ON and attention.ratios == {SA: Ratio(0.25, 0.125, 0.25)}
    assert by_name["KV cache", None].ratios[SA].median == 700 / 800
    assert by_name["peak memory", None].ratios[SA].median == 72 / 80
    assert by_name["peak anonymous memory", None].ratios[SA].median == 45 / 50


def test_predictions(measured):
    by_name = {(row.what, row.depth): row.predicted for row in rows(measured)}
    # three of twelve layers have no K; K and V are as wide, so an eighth of the cache
    assert by_name["KV cache", None] == 1 - 3 / 24
    weights = [info.n_bytes for info in read_header(measured.request.dense).tensors.values()]
    saved = 3 * 128 * (128 + 64) // 32 * 34
    assert by_name["decode", 0] == pytest.approx(sum(weights) / (sum(weights) - saved))
    k, p = 64 * (3 * 64 * 2), 64 * (3 * 4 * 2)
    kv = 64 * (24 * 64 * 2)
    assert by_name["decode", 64] == pytest.approx((sum(weights) + kv) / (sum(weights) - saved + kv - k + p))
    assert by_name["decode attention", 64] == (64 * 2 + 4 * 2) / (2 * 64 * 2)
    assert by_name["compute buffers", None] is None
    assert by_name["prefill", 64] > by_name["prefill", 0] > 1


def test_the_table_marks_the_better_dense_setting(measured):
    console = Console(file=io.StringIO(), width=200)
    bench_report.show(measured, console)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert "decode, tokens/s 64 5.00 * 3.33 6.25 1.25 (1.25-2.00)" in [line.rsplit(" ", 1)[0] for line in lines]
    assert "decode attention, ms 64 4.00 * 4.00 1.00 0.25 (0.12-0.25) 0.531" in lines


def test_settings():
    def names(**options):
        request = BenchRequest("dense.gguf", "sa.gguf", **options)
        return [setting.name for setting in settings.settings_of(request)]

    assert names() == [ON, OFF, SA]
    assert names(p_bytes=(3 << 20, settings.UNLIMITED)) == [ON, OFF, SA, "SA, P 3 MiB", "SA, P unlimited"]
    assert names(type_v="q8_0") == [ON, SA]


# ---------------------------------------------------------------- the worker


@pytest.mark.parametrize("flash_attn", [True, False])
@pytest.mark.parametrize("which", [0, 1])
def test_a_filled_cache_is_as_full_as_a_computed_one_and_measuring_leaves_it_so(files, which, flash_attn):
    params = {"n_ctx": 1024, "n_seq_max": 2, "kv_unified": True} | ONE_THREAD
    with Model(parity.lib(), files[which]) as model:
        with Context(model, flash_attn, **params) as context:
            context.decode([Token(i % SHAPE.n_vocab, i) for i in range(3 * PIECE + 20)])
            computed = len(context.sequence_state())
        with Context(model, flash_attn, **params) as context:
            worker = Worker(context, whole_call_timer(time.perf_counter))
            worker.fill(2 * PIECE)
            worker.fill(3 * PIECE + 20)
            filled = context.sequence_state()
            assert len(filled) == computed
            assert len(worker.prefill(40)) == 1 and len(worker.decode(3)) == 3
            assert context.sequence_state() == filled


@pytest.mark.parametrize("flash_attn", [True, False])
def test_the_clock_sees_the_attention_of_each_layer(files, flash_attn):
    lib = parity.lib()
    clock = NodeClock(lib, time.perf_counter)
    with (
        Model(lib, files[1]) as model,
        Context(model, flash_attn, n_ctx=256, cb_eval=clock.callback, **ONE_THREAD) as context,
    ):
        first, second = Worker(context, clock).decode(2)
    assert set(first) == set(second) == {str(layer) for layer in range(12)}
    assert min(first.values()) > 0


def test_a_dead_worker_is_an_error(files):
    request = BenchRequest(*files, depths=(0,), threads=1)
    worker = WorkerProcess(settings.settings_of(request)[0], request, clock=False)
    try:
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(RuntimeProblem, match=r"dense\.gguf: 'dense, flash on' died \(status -9\)"):
            worker.run_command("prefill", n=16)
    finally:
        worker.close()


# ---------------------------------------------------------------- the command


def test_bench_as_json_and_as_a_plot(run, files, tmp_path):
    done = run("bench", *files, *QUICK, "--p-bytes", "0", "--json", "--plot", tmp_path / "out.png")
    assert done.status == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["settings"] == [ON, OFF, SA, "SA, P 0 MiB"] and data["spans"] == "6-9" and data["n_ctx"] == 256
    seen = {(row["what"], row["depth"]): row for row in data["rows"]}
    assert set(seen) == {
        *((what, depth) for what in ("prefill", "decode") for depth in (0, 200)),
        ("prefill attention", 200),
        ("decode attention", 200),
        *((what, None) for what in ("KV cache", "compute buffers", "peak memory", "peak anonymous memory")),
    }
    for row in seen.values():
        assert set(row["values"]) == set(data["settings"]) and min(row["values"].values()) > 0
        assert set(row["ratios"]) == {SA, "SA, P 0 MiB"} and row["baseline"] in (ON, OFF)
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
        ((tmp_path / "other.gguf", sa), f"{sa}: shareatt.source.sha256: was not made from {tmp_path / 'other.gguf'}"),
        ((tmp_path / "none.gguf", sa), f"{tmp_path / 'none.gguf'}: no such file"),
    ):
        done = run("bench", *arguments, *QUICK)
        assert (done.status, done.stdout) == (1, "") and done.error.startswith(f"Error: {message}")


@pytest.mark.parametrize("option", [("--depths", "0,x"), ("--depths", ""), ("--ctk", "q3_k"), ("--rounds", "0")])
def test_usage(run, files, option):
    assert run("bench", *files, *option).status == 2


def test_the_unpatched_library_is_asked_for(run, files, monkeypatch):
    status = runtime.status
    missing = runtime.RuntimeStatus(files[0].parent, False, {})
    monkeypatch.setattr(runtime, "status", lambda patched=True: status() if patched else missing)
    message = "the unpatched llama.cpp is not built yet; run 'shareatt-export runtime build --unpatched'"
    assert run("bench", *files, *QUICK).error == f"Error: {message}"


def test_matplotlib_is_asked_for_before_anything_is_measured(run, files, tmp_path, monkeypatch):
    monkeypatch.setattr(output, "find_spec", lambda name: None)
    done = run("bench", *files, *QUICK, "--plot", tmp_path / "out.png")
    assert done.error == "Error: matplotlib is needed for --plot; pip install 'shareatt-export[plot]'"
    assert done.stderr.count("\n") == 1


def test_json_of_made_up_seconds_is_json(measured):
    assert json.loads(json.dumps(as_dict(measured)))["cache"] == {"k": "f16", "v": "f16"}
