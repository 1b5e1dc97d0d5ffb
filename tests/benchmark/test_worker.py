"""The worker process of a benchmark: the filled cache, the attention times of each layer, and a worker that dies."""

import time

import pytest

from shareatt_export.benchmark.request import BenchRequest
from shareatt_export.benchmark.settings import settings_of
from shareatt_export.benchmark.worker import PIECE, NodeClock, Worker, whole_call_timer
from shareatt_export.benchmark.worker_process import WorkerProcess
from shareatt_export.errors import RuntimeProblem
from shareatt_export.llamacpp.engine import Context, Model, Token
from tests.benchmark.conftest import SHAPE
from tests.support import parity

ONE_THREAD = {"n_threads": 1, "n_threads_batch": 1}


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
    worker = WorkerProcess(settings_of(request)[0], request, clock=False)
    try:
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(RuntimeProblem, match=r"dense\.gguf: 'dense, flash on' died \(status -9\)"):
            worker.run_command("prefill", n=16)
    finally:
        worker.close()
