"""A child of bench.py: one model in one context, which does what lines of JSON on stdin say and answers on stdout.

    python -m shareatt_export.benchmark.worker '{"python": ..., "bin": ..., "model": ..., "context": {...}, ...}'
    {"do": "fill", "depth": 4096}        ->  {"memory": {...}}
    {"do": "prefill", "n": 512}          ->  {"seconds": [{"all": 8.1}], "memory": {...}}
    {"do": "decode", "n": 16}            ->  {"seconds": [{"all": 0.11}, ...], "memory": {...}}

To fill a context of 16384 tokens by computing takes many minutes, and how long attention takes does not depend on what
the cache holds. So a piece is computed once, and its state restored again and again under a second sequence whose
cells then become the first one's: the cache is as full, and every cell is attended to. Copies keep their positions, so
the next position is that after the computed tokens, not the depth.
"""

import ctypes
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import BadInput, RuntimeProblem, ShareattError
from ..llamacpp.bindings import load
from ..llamacpp.engine import Context, Model, Token

PIECE = 128  # tokens: so small that its state does not show in the peak memory
COPY = 1  # the sequence that a piece is restored to


Seconds = dict[str, float]  # of "all", or of the attention of each layer
Timer = Callable[[Callable[[], object]], Seconds]
Now = Callable[[], float]


def whole(now: Now) -> Timer:
    def timer(run: Callable[[], object]) -> Seconds:
        start = now()
        run()
        return {"all": now() - start}

    return timer


class Worker:
    def __init__(self, context: Context, timer: Timer) -> None:
        self.context, self.timer = context, timer
        self.depth = self.position = 0  # tokens in the cache; the next position
        self.piece: bytes | None = None
        self.tokens = np.random.default_rng(0).integers(0, context.model.n_vocab, 1 << 16)

    def fill(self, depth: int) -> None:
        if self.piece is None and depth >= PIECE:
            self._compute(PIECE)
            self.piece = self.context.sequence_state()
        while self.piece is not None and depth - self.depth >= PIECE:
            self._copy_piece(self.piece)
        if depth > self.depth:
            self._compute(depth - self.depth)

    def _compute(self, n: int) -> None:
        self._decode(self.position, n)
        self.position += n
        self.depth += n

    def _copy_piece(self, piece: bytes) -> None:
        lib, memory = self.context.lib, self.context.memory
        if not self.context.restore_sequence(piece, COPY):
            raise RuntimeProblem(f"the state of {PIECE} tokens does not fit behind {self.depth} others")
        lib.llama_memory_seq_cp(memory, COPY, 0, -1, -1)
        lib.llama_memory_seq_rm(memory, COPY, -1, -1)
        self.depth += PIECE

    def prefill(self, n: int) -> list[Seconds]:
        seconds = [self._decode(self.position, n)]
        self._forget()
        return seconds

    def decode(self, n: int) -> list[Seconds]:
        """Seconds of each token but the first, for which llama.cpp builds its graph anew."""
        seconds = [self._decode(self.position + i, 1) for i in range(n + 1)]
        self._forget()
        return seconds[1:]

    def _decode(self, position: int, n: int) -> Seconds:
        batch = [Token(int(self.tokens[(position + i) % len(self.tokens)]), position + i) for i in range(n)]
        return self.timer(lambda: self.context.decode(batch, last_only=True))

    def _forget(self) -> None:
        self.context.lib.llama_memory_seq_rm(self.context.memory, 0, self.position, -1)


class NodeClock:
    """Times the attention of each layer, node by node: what runs between its last cache write and `kqv_out`.

    Under an eval callback that wants every node, llama.cpp computes each by itself and waits for it. That costs some
    microseconds for each node, so the times mean something where nodes take milliseconds, at depths of thousands.
    """

    def __init__(self, lib: ModuleType, now: Now) -> None:
        self.now = now
        self.seconds: Seconds = {}
        self.callback = lib.ggml_backend_sched_eval_callback(self._look)
        self._name, self._op = lib._lib.ggml_get_name, lib._lib.ggml_op_desc
        for function in (self._name, self._op):
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_char_p
        self._start = self._sum = 0.0

    def _look(self, tensor: int, ask: bool, data: object) -> bool:
        if ask:
            self._start = self.now()
            return True
        self._sum += self.now() - self._start
        if self._op(tensor) == b"SET_ROWS":
            self._sum = 0.0
        elif end := re.fullmatch(rb"kqv_out-(\d+)", self._name(tensor)):
            layer = end[1].decode()
            self.seconds[layer] = self.seconds.get(layer, 0.0) + self._sum  # a batch may be several ubatches
        return True

    def __call__(self, run: Callable[[], object]) -> Seconds:
        self.seconds = {}
        run()
        if not self.seconds:
            raise RuntimeProblem("this llama.cpp names no node 'kqv_out-N'; its attention cannot be timed")
        return self.seconds


def memory() -> dict[str, int | None]:
    """Bytes: the peak of the resident set, and what of it now is anonymous, not the mapped weights."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"rss": peak * (1 if sys.platform == "darwin" else 1024), "anonymous": None}
    kib = {name: int(value) for name, value in re.findall(r"(VmHWM|RssAnon):\s+(\d+) kB", status)}
    return {"rss": kib["VmHWM"] * 1024, "anonymous": kib["RssAnon"] * 1024}


def buffer_bytes(log: str, kind: str) -> int:
    """The sum of what the log calls a '{kind} buffer size', as exact as its two decimals of a MiB."""
    return round(sum(float(mib) for mib in re.findall(rf"{kind} buffer size = +([\d.]+) MiB", log)) * 2**20)


def serve(spec: dict[str, Any]) -> None:
    lib = load(Path(spec["python"]), Path(spec["bin"]))
    # a single thread works in this one, and other programs do not disturb its CPU time
    now = time.thread_time if spec["context"]["n_threads"] == 1 else time.perf_counter
    clock = NodeClock(lib, now) if spec["clock"] else None
    params = spec["context"] | ({"cb_eval": clock.callback} if clock else {})
    with Model(lib, Path(spec["model"])) as model, Context(model, spec["flash_attn"], **params) as context:
        worker = Worker(context, clock or whole(now))
        sizes = {kind.lower(): buffer_bytes(context.log, kind) for kind in ("KV", "compute")}
        _say({"buffers": sizes, "memory": memory()})
        for line in sys.stdin:
            request = json.loads(line)
            seconds = getattr(worker, request.pop("do"))(**request)
            _say({"seconds": seconds, "memory": memory()})


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> int:
    try:
        serve(json.loads(sys.argv[1]))
    except ShareattError as error:
        _say({"error": str(error), "bad_input": isinstance(error, BadInput)})
        return 1
    except KeyboardInterrupt:  # the parent has got it too
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
