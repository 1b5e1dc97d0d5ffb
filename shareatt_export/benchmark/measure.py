"""Measure a dense model against its SA model: prefill, decode, attention alone, memory.

    measured = measure(BenchRequest(dense, sa, depths=(0, 4096, 16384)))
    table = rows(measured)    # see rows.py

Each setting has a worker process (worker.py), which runs for all depths. Only one worker computes at a time. They take
turns in short rounds, in alternating order, because the speed of a machine changes within minutes: so each measurement
is compared with others that were made shortly before or after it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import RuntimeProblem
from ..llamacpp import runtime
from ..model.costs import decode_bytes, prefill_flops
from ..system.progress import Step, silent
from .limits import Limits, measure_limits
from .request import BenchRequest
from .settings import ModelPair, Setting, read_pair, settings_of
from .worker_process import WorkerProcess, worker_processes

ATTENTION_TOKENS = 5  # tokens of a round whose attention is timed node by node
TURN = 4  # tokens that one setting decodes before the next setting does

Measurement = tuple[str, int]  # "prefill" or "decode", and the depth
SpeedSeconds = dict[Measurement, dict[str, list[float]]]  # by setting: the seconds of a token in each round
AttentionSeconds = dict[Measurement, dict[str, list[dict[int, float]]]]  # by setting: the same by layer in each round


@dataclass(frozen=True)
class Measured:
    """What a benchmark measured, by the name of the setting. `rows` makes a table of it.

    A measurement is "prefill" or "decode", and a number of tokens in the context.

    Attributes:
        request: What was asked for.
        pair: The facts and the weight sizes of both models.
        settings: What was measured: the dense model with flash attention on and off, and the SA model.
        seconds: By measurement and setting, the seconds of one token in each round; of a prefill, an equal share of the
            prompt.
        attention: By measurement and setting, the seconds of the attention of each layer in each round: of the whole
            prompt, or of one token.
        buffers: Bytes of "kv" and "compute" buffers, from the log of llama.cpp.
        limits: What the machine can do.
        memory: Peaks in bytes of "rss" (resident set) and "anonymous" memory; None where the system does not tell.
    """

    request: BenchRequest
    pair: ModelPair
    settings: tuple[Setting, ...]
    seconds: SpeedSeconds
    attention: AttentionSeconds
    buffers: dict[str, dict[str, int]]
    limits: Limits
    memory: dict[str, dict[str, int | None]]


def measure(request: BenchRequest, progress: Step = silent) -> Measured:
    """Make all measurements. Raises BadInput if the files are no pair, RuntimeProblem if llama.cpp cannot run them."""
    built, unpatched = runtime.require_built(), runtime.require_built(patched=False)
    if runtime.options_of(built) != runtime.options_of(unpatched):
        raise RuntimeProblem(
            "the unpatched llama.cpp is built for other devices than the runtime",
            path=unpatched.bin,
            next_step="run 'shareatt-export runtime build --unpatched'",
        )
    progress("reading the models", None)
    pair, settings = read_pair(Path(request.dense), Path(request.sa)), settings_of(request)
    work = _Work(request, pair, len(settings), progress)
    with worker_processes(settings, request, clock=False) as workers:
        seconds = _speed(request, workers, work)
        buffers = {worker.setting.name: worker.buffers for worker in workers}
        memory = {worker.setting.name: worker.memory for worker in workers}
    with worker_processes(settings, request, clock=True) as workers:
        attention = _attention(request, workers, work)
    limits = measure_limits(request.threads)
    return Measured(request, pair, settings, seconds, attention, buffers, limits, memory)


def _speed(request: BenchRequest, workers: list[WorkerProcess], work: "_Work") -> SpeedSeconds:
    for worker in workers:  # a first prefill, which is not counted, reads the weights from the disk
        worker.run_command("prefill", n=request.prompt)
        work.done("speed", "prefill", request.prompt, 0)
    seconds: SpeedSeconds = {}
    for depth in request.depths:
        for worker in workers:
            worker.run_command("fill", depth=depth)
        for i in range(request.rounds):
            _speed_round(request, workers if i % 2 == 0 else workers[::-1], depth, work, seconds)
    return seconds


def _turns(request: BenchRequest) -> Iterator[tuple[str, int]]:
    """Yield the commands of a round, with their numbers of tokens; each setting runs one before the next one comes."""
    yield "prefill", request.prompt
    for n_decoded in range(0, request.generate, TURN):
        yield "decode", min(TURN, request.generate - n_decoded)


def _speed_round(
    request: BenchRequest, workers: list[WorkerProcess], depth: int, work: "_Work", seconds: SpeedSeconds
) -> None:
    """Run one round at a depth, and append its results to `seconds`."""
    for command, n in _turns(request):
        by_setting = seconds.setdefault((command, depth), {})
        for worker in workers:
            times = sorted(step["all"] for step in worker.run_command(command, n=n))
            n_tokens = n if command == "prefill" else 1  # of each step
            by_setting.setdefault(worker.setting.name, []).append(times[len(times) // 2] / n_tokens)
            work.done("speed", command, n, depth)
        workers = workers[::-1]


def _attention(request: BenchRequest, workers: list[WorkerProcess], work: "_Work") -> AttentionSeconds:
    seconds: AttentionSeconds = {}
    for depth in filter(None, request.depths):
        for worker in workers:
            worker.run_command("fill", depth=depth)
        # one prefill is enough: it takes long, and each layer gives a measurement
        _attention_round(workers, "prefill", request.prompt, depth, work, seconds)
        for i in range(request.rounds):
            ordered = workers if i % 2 == 0 else workers[::-1]
            _attention_round(ordered, "decode", ATTENTION_TOKENS, depth, work, seconds)
    return seconds


def _attention_round(
    workers: list[WorkerProcess], command: str, n: int, depth: int, work: "_Work", seconds: AttentionSeconds
) -> None:
    """Append to `seconds` the attention of each layer: for the whole prompt, or the median over the decoded tokens."""
    by_setting = seconds.setdefault((command, depth), {})
    for worker in workers:
        steps = worker.run_command(command, n=n)
        medians = {int(layer): sorted(step[layer] for step in steps)[len(steps) // 2] for layer in steps[0]}
        by_setting.setdefault(worker.setting.name, []).append(medians)
        work.done("attention", command, n, depth)


class _Work:
    """Reports the fraction of the work that is done, from an estimate of the time that each command takes."""

    def __init__(self, request: BenchRequest, pair: ModelPair, n_settings: int, progress: Step) -> None:
        self._pair, self._progress, self._so_far = pair, progress, 0.0
        deep = [depth for depth in request.depths if depth]
        speed = sum(self._cost(*turn, depth) for depth in request.depths for turn in _turns(request))
        once = sum(self._cost("prefill", request.prompt, depth) for depth in (0, *deep))
        attention = sum(self._cost("decode", ATTENTION_TOKENS, depth) for depth in deep)
        self._total = n_settings * (once + request.rounds * (speed + attention))

    def _cost(self, command: str, n: int, depth: int) -> float:
        """Return seconds on a machine with 100 GFLOP/s and 10 GB/s, though only the proportions matter."""
        facts, weights = self._pair.facts, self._pair.weights
        if command == "prefill":
            return prefill_flops(facts, facts.attention, weights, n, depth) / 100e9
        n_bytes = decode_bytes(facts, facts.attention, weights.n_bytes, depth)
        return (1 + n) * n_bytes / 10e9  # the worker decodes one token more, which it does not count

    def done(self, measurement: str, command: str, n: int, depth: int) -> None:
        """Count one command of one worker as done, and report the fraction."""
        self._so_far += self._cost(command, n, depth)
        self._progress(f"{measurement} at depth {depth}", min(1.0, self._so_far / self._total))
