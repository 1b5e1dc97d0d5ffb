#!/usr/bin/env python3
"""Compare the speed of the runtime with other programs on the same GGUF, with the same threads, in turns.

    python -m venv peers && peers/bin/pip install ik-llama-cpp-python==0.1.5 xllamacpp==2026.10.11549
    python scripts/bench_peers.py dense.gguf sa.gguf --peers peers/bin/python --depths 0,8192

The settings are those of `shareatt-export bench`: stock llama.cpp with flash attention on and off, the dense model
with the kernels of Shared Attention, and the SA model. The peers are ik_llama.cpp and the newest llama.cpp; one that
is not installed, or cannot run the model, is left out, with a note. The newest llama.cpp tells a mean over the tokens
that it writes, where the others tell the median, without the first one. Prints a table in Markdown of medians in
tokens per second, and of attention alone: the time of a token at a depth minus its time in an empty context. `--json`
keeps the times of all rounds.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).parent.parent))

from scripts.peer_worker import PEERS
from shareatt_export.benchmark.request import BenchRequest
from shareatt_export.benchmark.settings import settings_of
from shareatt_export.benchmark.worker_process import WorkerProcess

Rounds = dict[str, list[float]]  # seconds of a token in each round, by program
Measurement = tuple[str, int]  # "prefill" or "decode", and the depth


class Runner(Protocol):
    def run_command(self, command: str, **arguments: int) -> list[dict[str, float]]: ...


class Peer:
    """Another program, in a process of its own that speaks as a worker of `shareatt-export bench` does."""

    def __init__(self, name: str, python: Path, request: BenchRequest) -> None:
        arguments = (name, request.dense, request.n_ctx, request.threads)
        command = [python, Path(__file__).with_name("peer_worker.py"), *arguments]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (it stays open as long as the process)
        words, pipe = list(map(str, command)), subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=self.errors, text=True)
        self._answer()

    def run_command(self, command: str, **arguments: int) -> list[dict[str, float]]:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"command": command} | arguments) + "\n")
        self.process.stdin.flush()
        seconds: list[dict[str, float]] = self._answer()["seconds"]
        return seconds

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        for line in self.process.stdout:  # some programs write other lines, too
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines() or ["it died"]
        raise RuntimeError(([line for line in lines if re.match(r"\w*Error\b", line)] or lines)[-1])

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def runners(request: BenchRequest, python: Path | None, stack: ExitStack) -> dict[str, Runner]:
    found: dict[str, Runner] = {}
    for setting in settings_of(request):
        worker = WorkerProcess(setting, request, clock=False)
        stack.callback(worker.close)
        warm_up(worker, request)
        found[setting.name] = worker
    for name in PEERS if python else ():
        assert python
        try:
            peer = Peer(name, python, request)
            warm_up(peer, request)  # some refuse a model without a vocabulary only here
        except RuntimeError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        stack.callback(peer.close)
        found[name] = peer
    return found


def warm_up(runner: Runner, request: BenchRequest) -> None:
    """Let a program read the weights, which does not count."""
    runner.run_command("prefill", n=request.prompt)


def measured(request: BenchRequest, programs: dict[str, Runner]) -> dict[Measurement, Rounds]:
    seconds: dict[Measurement, Rounds] = {}

    def run(name: str, command: str, **arguments: int) -> list[float]:
        try:
            return [step["all"] for step in programs[name].run_command(command, **arguments)]
        except RuntimeError as error:
            if name not in PEERS:
                raise
            print(f"{name} is left out: {error}", file=sys.stderr)
            del programs[name]
            for rounds in seconds.values():
                rounds.pop(name, None)
            return []

    for depth in request.depths:
        for name in list(programs):
            print(f"{name}: filling the context to {depth} tokens", file=sys.stderr)
            run(name, "fill", depth=depth)
        for i in range(request.rounds):
            print(f"round {i + 1} at depth {depth}", file=sys.stderr)
            for what, n in (("prefill", request.prompt), ("decode", request.generate)):
                for name in list(programs)[:: 1 if i % 2 == 0 else -1]:
                    if times := run(name, what, n=n):
                        each = times[0] / n if what == "prefill" else median(times)
                        seconds.setdefault((what, depth), {}).setdefault(name, []).append(each)
    return seconds


def table(seconds: dict[Measurement, Rounds]) -> Iterator[str]:
    names = list(next(iter(seconds.values())))
    yield row(["", *names])
    yield row(["---"] * (1 + len(names)))
    for (what, depth), rounds in sorted(seconds.items()):
        yield row([f"{what} at {depth}", *(f"{1 / median(rounds[name]):.1f}" for name in names)])
    for (what, depth), rounds in sorted(seconds.items()):
        if depth and (empty := seconds.get((what, 0))):
            alone = [median(rounds[name]) - median(empty[name]) for name in names]
            cells = [f"{1 / each:.1f}" if each > 0 else "?" for each in alone]
            yield row([f"{what}, attention alone at {depth}", *cells])


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path, help="a dense GGUF")
    parser.add_argument("sa", type=Path, help="an SA GGUF that was made from it")
    parser.add_argument("--peers", type=Path, metavar="PYTHON", help="the Python of the environment with the peers")
    parser.add_argument("--depths", default="0,8192", help="tokens in the context, the least first")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    request = BenchRequest(
        args.dense,
        args.sa,
        depths=tuple(map(int, args.depths.split(","))),
        prompt=args.prompt,
        generate=args.generate,
        rounds=args.rounds,
        threads=args.threads,
    )
    with ExitStack() as stack:
        seconds = measured(request, runners(request, args.peers, stack))
    if args.json:
        rows = [{"what": what, "depth": depth, "seconds": rounds} for (what, depth), rounds in seconds.items()]
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print("\n".join(table(seconds)))


if __name__ == "__main__":
    main()
