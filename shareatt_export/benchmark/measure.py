"""Measure a dense model against its SA model: prefill, decode, attention alone, memory.

    measured = measure(Request(dense, sa, depths=(0, 4096, 16384)))
    rows = bench_rows.rows(measured)

Each setting runs in a child process of its own (bench_worker.py) and keeps it for all depths; the dense ones on the
unpatched library. One child computes at a time. They take turns in short rounds, back and forth, because machines
change their speed within minutes: what is compared ran next to each other.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from ..errors import BadInput, RuntimeProblem
from ..formats.gguf_header import Header
from ..formats.gguf_keys import KEY_SOURCE_SHA256
from ..formats.identity import tensors_sha256
from ..formats.shards import read_model
from ..llamacpp import runtime
from ..model.costs import WeightSizes, decode_bytes, prefill_flops, read_weights
from ..model.facts import Facts, read_facts
from ..system.progress import Step, silent
from .request import BenchRequest

P_BYTES = "LLAMA_SHARED_ATTN_P_BYTES"  # the runtime's memory for attention weights; without it the K that is saved
UNLIMITED = 1 << 62
N_UBATCH = 512  # llama.cpp's default
ATTENTION_TOKENS = 5  # tokens of a round whose attention is timed node by node
TURN = 4  # tokens that one setting decodes before the next one does


@dataclass(frozen=True)
class Setting:
    name: str
    model: Path
    shared: bool
    flash_attn: bool | None = None
    p_bytes: int | None = None


@dataclass(frozen=True)
class ModelPair:
    """The two models as their headers tell them."""

    facts: Facts
    sa_facts: Facts
    weights: WeightSizes
    sa_weights: WeightSizes


@dataclass
class Measured:
    """Seconds of each turn by setting: all of a token, and the attention of each layer."""

    request: BenchRequest
    pair: ModelPair
    settings: tuple[Setting, ...]
    seconds: dict[tuple[str, int], dict[str, list[float]]] = field(default_factory=dict)  # ("decode", depth)
    attention: dict[tuple[str, int], dict[str, list[dict[int, float]]]] = field(default_factory=dict)
    buffers: dict[str, dict[str, int]] = field(default_factory=dict)  # "kv" and "compute", bytes
    memory: dict[str, dict[str, int | None]] = field(default_factory=dict)  # peaks of "rss" and "anonymous"


def cache_type(name: str) -> GGMLQuantizationType:
    return GGMLQuantizationType[name.upper()]


def settings_of(request: BenchRequest) -> tuple[Setting, ...]:
    dense = [Setting("dense, flash on", Path(request.dense), False, True)]
    if request.type_v in ("f32", "f16", "bf16"):
        dense.append(Setting("dense, flash off", Path(request.dense), False, False))  # it cannot quantise V
    sa = [Setting("SA", Path(request.sa), True)]
    for n in request.p_bytes:
        name = "SA, P unlimited" if n >= UNLIMITED else f"SA, P {n / 2**20:g} MiB"
        sa.append(Setting(name, Path(request.sa), True, None, n))
    return (*dense, *sa)


def read_pair(dense: Path, sa: Path) -> ModelPair:
    """Raises BadInput where the two are no pair; reads all tensor data of the dense model for its identity."""
    headers = read_model(dense), read_model(sa)
    facts, sa_facts = map(read_facts, headers)
    if facts.is_shared:
        raise BadInput(f"{dense}: shares attention; the first argument must be the dense model")
    if not sa_facts.is_shared:
        raise BadInput(f"{sa}: shares no attention; make an SA model with 'shareatt-export {dense} --spans ... -o OUT'")
    _check_identity(*headers)
    return ModelPair(facts, sa_facts, *map(read_weights, headers))


def _check_identity(dense: Header, sa: Header) -> None:
    if sa.value(KEY_SOURCE_SHA256) != tensors_sha256(dense):
        raise BadInput(
            f"{sa.path}: {KEY_SOURCE_SHA256}: was not made from {dense.path}; give the dense GGUF it was exported from"
        )


class WorkerProcess:
    """A worker process; `ask` sends one request and waits for its answer. Raises what the worker reports."""

    def __init__(self, setting: Setting, request: BenchRequest, clock: bool) -> None:
        self.setting = setting
        patched = runtime.require()
        spec = {
            "python": str(patched.python),
            "bin": str((patched if setting.shared else runtime.require(patched=False)).bin),
            "model": str(setting.model),
            "flash_attn": setting.flash_attn,
            "clock": clock,
            "context": {
                "n_ctx": request.n_ctx,
                "n_batch": max(request.prompt, N_UBATCH),
                "n_ubatch": N_UBATCH,
                "n_seq_max": 2,  # the second one is for copies, see bench_worker.py
                "kv_unified": True,
                "n_threads": request.threads,
                "n_threads_batch": request.threads,
                "type_k": int(cache_type(request.type_k)),
                "type_v": int(cache_type(request.type_v)),
            },
        }
        env = {name: value for name, value in os.environ.items() if name != P_BYTES}
        if setting.p_bytes is not None:
            env[P_BYTES] = str(setting.p_bytes)
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the child
        self.process = subprocess.Popen(
            [sys.executable, "-m", "shareatt_export.benchmark.worker", json.dumps(spec)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=env,
        )  # fmt: skip
        self.anonymous: int | None = None
        self.rss: int | None = None
        try:
            self.buffers: dict[str, int] = self._answer()["buffers"]
        except BaseException:
            self.close()
            raise

    def ask(self, do: str, **arguments: int) -> list[dict[str, float]]:
        assert self.process.stdin  # noqa: S101
        try:
            self.process.stdin.write(json.dumps({"do": do} | arguments) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it died; its last words, or their lack, are in the answer
        seconds: list[dict[str, float]] = self._answer()["seconds"]
        return seconds

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout  # noqa: S101
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeProblem(f"{self.setting.model}: '{self.setting.name}' {self._death()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise (BadInput if answer["bad_input"] else RuntimeProblem)(answer["error"])
        memory = answer["memory"]
        self.rss = memory["rss"]
        if memory["anonymous"] is not None:
            self.anonymous = max(self.anonymous or 0, memory["anonymous"])
        return answer

    def _death(self) -> str:
        status = self.process.wait()
        self.errors.seek(0)
        words = [line.strip() for line in self.errors if line.strip()] or ["too little memory? try smaller --depths"]
        return f"died (status {status}): {words[-1]}"

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


@contextmanager
def _children(settings: tuple[Setting, ...], request: BenchRequest, clock: bool) -> Iterator[list[WorkerProcess]]:
    with ExitStack() as stack:
        children = []
        for setting in settings:
            children.append(WorkerProcess(setting, request, clock))
            stack.callback(children[-1].close)
        yield children


def measure(request: BenchRequest, progress: Step = silent) -> Measured:
    """All measurements. Raises BadInput, RuntimeProblem."""
    runtime.require()
    runtime.require(patched=False)
    progress("reading the models", None)
    measured = Measured(request, read_pair(Path(request.dense), Path(request.sa)), settings_of(request))
    work = _Work(measured, progress)
    with _children(measured.settings, request, clock=False) as children:
        for child in children:  # pages in the weights, touches the buffers
            child.ask("prefill", n=request.prompt)
            work.done("speed", "prefill", request.prompt, 0)
        for depth in request.depths:
            for child in children:
                child.ask("fill", depth=depth)
            for i in range(request.rounds):
                _round(measured, children if i % 2 == 0 else children[::-1], depth, work)
        for child in children:
            measured.buffers[child.setting.name] = child.buffers
            measured.memory[child.setting.name] = {"rss": child.rss, "anonymous": child.anonymous}
    with _children(measured.settings, request, clock=True) as children:
        for depth in filter(None, request.depths):
            for child in children:
                child.ask("fill", depth=depth)
            _attention(measured, children, "prefill", depth, work)  # once: it is long, and each layer counts
            for i in range(request.rounds):
                _attention(measured, children if i % 2 == 0 else children[::-1], "decode", depth, work)
    return measured


def _turns(request: BenchRequest) -> Iterator[tuple[str, int]]:
    """What each setting does in a round before the others do the same, and with how many tokens."""
    yield "prefill", request.prompt
    for done in range(0, request.generate, TURN):
        yield "decode", min(TURN, request.generate - done)


def _round(measured: Measured, children: list[WorkerProcess], depth: int, work: "_Work") -> None:
    for what, n in _turns(measured.request):
        turns = measured.seconds.setdefault((what, depth), {})
        for child in children:
            times = sorted(seconds["all"] for seconds in child.ask(what, n=n))
            turns.setdefault(child.setting.name, []).append(times[len(times) // 2] / (n if what == "prefill" else 1))
            work.done("speed", what, n, depth)
        children = children[::-1]


def _attention(measured: Measured, children: list[WorkerProcess], what: str, depth: int, work: "_Work") -> None:
    """Seconds of the attention of each layer: for the whole prompt, or for a token (the median of some)."""
    rounds = measured.attention.setdefault((what, depth), {})
    n = measured.request.prompt if what == "prefill" else ATTENTION_TOKENS
    for child in children:
        times = child.ask(what, n=n)
        middle = {int(layer): sorted(t[layer] for t in times)[len(times) // 2] for layer in times[0]}
        rounds.setdefault(child.setting.name, []).append(middle)
        work.done("attention", what, n, depth)


class _Work:
    """How much of the work is done, by the arithmetic's idea of how long its parts take."""

    def __init__(self, measured: Measured, progress: Step) -> None:
        self.measured, self.progress, self.so_far = measured, progress, 0.0
        request, n = measured.request, len(measured.settings)
        speed = sum(self._cost(*turn, depth) for depth in request.depths for turn in _turns(request))
        behind = [depth for depth in request.depths if depth]
        once = sum(self._cost("prefill", request.prompt, depth) for depth in (0, *behind))
        attention = sum(self._cost("decode", ATTENTION_TOKENS, depth) for depth in behind)
        self.total = n * (once + request.rounds * (speed + attention))

    def _cost(self, what: str, n: int, depth: int) -> float:
        """In seconds of a machine with 100 GFLOP/s and 10 GB/s, though only the proportions matter."""
        pair = self.measured.pair
        if what == "prefill":
            return prefill_flops(pair.facts, pair.facts.source_layers, pair.weights, n, depth) / 100e9
        n_bytes = decode_bytes(pair.facts, pair.facts.source_layers, pair.weights.n_bytes, depth)
        return (1 + n) * n_bytes / 10e9  # one that is not counted, see bench_worker.py

    def done(self, of: str, what: str, n: int, depth: int) -> None:
        self.so_far += self._cost(what, n, depth)
        self.progress(f"{of} at depth {depth}", min(1.0, self.so_far / self.total))
