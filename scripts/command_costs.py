#!/usr/bin/env python3
"""Measure how long each command takes on a real model, and how much memory.

    python scripts/command_costs.py smollm2.gguf 25-28 --text prose-heldout.txt

Prints a table in Markdown. Searches, fits and healing are noted by scripts/ladder.py.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from scripts.measured_run import Run, shareatt_export
from shareatt_export.llamacpp import runtime
from tests.support.server import PORT, serving

PROMPT = "The capital of France is"


def runs(dense: Path, spans: str, text: Path, folder: Path, threads: int) -> Iterator[tuple[str, Run]]:
    shared, fitted = folder / "shared.gguf", folder / "fitted.gguf"
    many = ("--threads", threads)
    windows = ("--text", text, "--windows", 4, *many)
    run = ("run", shared, "-p", PROMPT, "-n", 64, *many, "--", "--temp", 0)
    for name, words in {
        "inspect": ("inspect", dense),
        "export": (dense, "--spans", spans, "-o", shared),
        "export --align --refit": (dense, "--spans", spans, "--align", "--refit", "--text", text, "-o", fitted, *many),
        "verify": ("verify", shared, "--against", dense),
        "run, 64 tokens": run,
        "analyze, 4 windows of 512": ("analyze", dense, *windows, "--json"),
        "eval, 4 windows of 512": ("eval", dense, shared, *windows, "--ctx", 512, "--json"),
        "bench, at depths 0 and 2048": ("bench", dense, shared, "--depths", "0,2048", *many, "--json"),
    }.items():
        yield name, shareatt_export(words)


def served(model: Path, folder: Path, threads: int) -> int:
    """Return the peak memory of a server after one answer, in KB."""
    command = [runtime.tool("llama-server"), "-m", model, "--port", PORT, "--threads", threads, "-c", 4096]
    with serving(*command, log=folder / "log") as server:
        server.post("/completion", prompt=PROMPT, n_predict=64)
        lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("spans")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2)
    args = parser.parse_args()
    print("| command | seconds | of all cores | peak memory, GB |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, run in runs(args.model, args.spans, args.text, folder, args.threads):
            print(f"| {what} | {run.seconds:.1f} | {run.cpu_seconds:.1f} | {run.peak_kb / 1e6:.2f} |", flush=True)
        peak_kb = served(folder / "shared.gguf", folder, args.threads)
        print(f"| serve, context of 4096, 64 tokens | | | {peak_kb / 1e6:.2f} |")


if __name__ == "__main__":
    main()
