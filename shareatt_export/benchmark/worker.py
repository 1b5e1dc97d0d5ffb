"""The worker process of a benchmark: it runs one model in one context, reads commands on stdin and times them.

    python -m shareatt_export.benchmark.worker '{"python": ..., "bin": ..., "model": ..., "context": {...}, ...}'
    {"command": "fill", "depth": 4096}   ->  {"seconds": [], "memory": {...}}
    {"command": "prefill", "n": 512}     ->  {"seconds": [{"all": 8.1}], "memory": {...}}
    {"command": "decode", "n": 16}       ->  {"seconds": [{"all": 0.11}, ...], "memory": {...}}

Commands and answers are lines of JSON. Before the first command it writes {"buffers": {...}, "memory": {...}}. If a
command fails, it answers {"error": {...}, "bad_input": ...}, with the fields of a ShareattError, and ends.

It would take many minutes to fill a context of 16384 tokens by computing them, and the time that attention takes does
not depend on the contents of the cache. So the worker computes a piece once, restores its state many times to a second
sequence, and moves the cells of that sequence to the first one: the cache is as full, and attention reads every cell.
Copies keep their positions, so the next position is the one after the computed tokens, not the depth.
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
from ..llamacpp.devices import offload_params
from ..llamacpp.engine import Context, Model, Token

PIECE = 128  # tokens; the state of more would raise the peak memory
COPY = 1  # the sequence that a piece is restored to

Seconds = dict[str, float]  # "all", or the number of each layer for its attention
Timer = Callable[[Callable[[], object]], Seconds]
Now = Callable[[], float]


def whole_call_timer(now: Now) -> Timer:
    """Return a timer that runs a function and returns the seconds that it took, as "all"."""

    def timer(run: Callable[[], object]) -> Seconds:
        start = now()
        run()
        return {"all": now() - start}

    return timer


class Worker:
    """Fills the cache of a context to a depth, and times what it decodes there, which it then removes again."""

    def __init__(self, context: Context, timer: Timer) -> None:
        self.context, self.timer = context, timer
        self.depth = self.position = 0  # tokens in the cache; the next position
        self.piece: bytes | None = None
        self.tokens = np.random.default_rng(0).integers(0, context.model.n_vocab, 1 << 16)

    def fill(self, depth: int) -> list[Seconds]:
        """Fill the cache to `depth` tokens, which is not timed. Raises RuntimeProblem if they do not fit."""
        if self.piece is None and depth >= PIECE:
            self._compute(PIECE)
            self.piece = self.context.sequence_state()
        while self.piece is not None and depth - self.depth >= PIECE:
            self._copy_piece(self.piece)
        if depth > self.depth:
            self._compute(depth - self.depth)
        return []

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
        """Return the seconds of a batch of n tokens."""
        seconds = [self._decode(self.position, n)]
        self._forget()
        return seconds

    def decode(self, n: int) -> list[Seconds]:
        """Return the seconds of n tokens, one by one, after one more that is not counted.

        At that first token llama.cpp builds a new graph.
        """
        seconds = [self._decode(self.position + i, 1) for i in range(n + 1)]
        self._forget()
        return seconds[1:]

    def _decode(self, position: int, n: int) -> Seconds:
        batch = [Token(int(self.tokens[(position + i) % len(self.tokens)]), position + i) for i in range(n)]
        return self.timer(lambda: self.context.decode(batch, last=1))

    def _forget(self) -> None:
        self.context.lib.llama_memory_seq_rm(self.context.memory, 0, self.position, -1)


class NodeClock:
    """Times the attention of each layer: the nodes after its last write to the cache, up to `kqv_out`.

    When an eval callback wants every node, llama.cpp computes one node after the other and waits for each. That adds
    some microseconds to each node, so the times are only useful where a node takes milliseconds, at depths of thousands
    of tokens. Calling the clock with a function runs it and returns the seconds by layer; it raises RuntimeProblem if
    no node is called kqv_out.
    """

    def __init__(self, lib: ModuleType, now: Now) -> None:
        self.now = now
        self.seconds: Seconds = {}
        self.callback = lib.ggml_backend_sched_eval_callback(self._on_node)
        self._name, self._op = lib._lib.ggml_get_name, lib._lib.ggml_op_desc
        for function in (self._name, self._op):
            function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_char_p
        self._start = self._sum = 0.0

    def _on_node(self, tensor: int, ask: bool, data: object) -> bool:
        if ask:  # llama.cpp calls it before the computation of each node, then after it
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
    """Return bytes: "rss", the peak of the resident set, and "anonymous", the part of it now that maps no file.

    "anonymous" is None where there is no /proc. Raises RuntimeProblem on Windows.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        if sys.platform == "win32":
            raise RuntimeProblem("memory cannot be measured on Windows yet", next_step="use WSL") from None
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"rss": peak * (1 if sys.platform == "darwin" else 1024), "anonymous": None}
    kib = {name: int(value) for name, value in re.findall(r"(VmHWM|RssAnon):\s+(\d+) kB", status)}
    return {"rss": kib["VmHWM"] * 1024, "anonymous": kib["RssAnon"] * 1024}


def buffer_bytes(log: str, kind: str) -> int:
    """Return the sum of all "{kind} buffer size" in llama.cpp's log, which gives them in MiB with two decimals."""
    return round(sum(float(mib) for mib in re.findall(rf"{kind} buffer size = +([\d.]+) MiB", log)) * 2**20)


def serve(spec: dict[str, Any]) -> None:
    """Load the model, and run commands until stdin ends. Raises BadInput or RuntimeProblem."""
    lib = load(Path(spec["python"]), Path(spec["bin"]))
    # With one thread, llama.cpp computes in this thread; other programs do not change its CPU time.
    now = time.thread_time if spec["context"]["n_threads"] == 1 else time.perf_counter
    clock = NodeClock(lib, now) if spec["clock"] else None
    params = spec["context"] | ({"cb_eval": clock.callback} if clock else {})
    offload = offload_params(lib, **spec["offload"])
    with Model(lib, Path(spec["model"]), **offload) as model, Context(model, spec["flash_attn"], **params) as context:
        worker = Worker(context, clock or whole_call_timer(now))
        commands: dict[str, Callable[..., list[Seconds]]] = {
            "fill": worker.fill,
            "prefill": worker.prefill,
            "decode": worker.decode,
        }
        sizes = {kind.lower(): buffer_bytes(context.log, kind) for kind in ("KV", "compute")}
        _answer({"buffers": sizes, "memory": memory()})
        for line in sys.stdin:
            arguments = json.loads(line)
            seconds = commands[arguments.pop("command")](**arguments)
            _answer({"seconds": seconds, "memory": memory()})


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run the worker; return its exit status."""
    try:
        serve(json.loads(sys.argv[1]))
    except ShareattError as error:
        path = None if error.path is None else str(error.path)
        fields = {"reason": error.reason, "path": path, "field": error.field, "next_step": error.next_step}
        _answer({"error": fields, "bad_input": isinstance(error, BadInput)})
        return 1
    except KeyboardInterrupt:  # the measuring process gets it too, and reports it
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
