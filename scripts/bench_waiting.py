"""Measure how threads should wait at OpenMP's barriers: tokens per second beside busy programs, for `run` and `serve`.

    python scripts/bench_waiting.py MODEL.gguf

Each way of waiting generates the same tokens in turns, alone and beside programs that keep the processor busy. The
figures are medians of whole processes, loading included.
"""

import argparse
import os
import statistics
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from shareatt_export.llamacpp import runtime

WAYS: dict[str, dict[str, str]] = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
}


def tokens_per_second(model: Path, n_tokens: int, env: dict[str, str]) -> float:
    """Generate tokens with the runtime's llama-completion, in an environment with these variables."""
    command = [str(runtime.tool("llama-completion")), "-m", str(model), "-p", "import os", "-n", str(n_tokens)]
    start = time.monotonic()
    subprocess.run(
        [*command, "-no-cnv", "--ignore-eos"],
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    return n_tokens / (time.monotonic() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2, 4], help="numbers of busy programs")
    args = parser.parse_args()
    print("| busy programs |", " | ".join(WAYS), "|\n|", "--- | " * (1 + len(WAYS)))
    for n_busy in args.busy:
        speeds: dict[str, list[float]] = {way: [] for way in WAYS}
        with ExitStack() as stack:
            for _ in range(n_busy):
                busy = stack.enter_context(subprocess.Popen(["sh", "-c", "while :; do :; done"]))
                stack.callback(busy.kill)
            for _ in range(args.rounds):
                for way, env in WAYS.items():
                    speeds[way].append(tokens_per_second(args.model, args.tokens, env))
        print(
            f"| {n_busy} |", " | ".join(f"{statistics.median(found):.1f}" for found in speeds.values()), "|", flush=True
        )


if __name__ == "__main__":
    main()
