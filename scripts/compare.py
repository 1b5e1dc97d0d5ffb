#!/usr/bin/env python3
"""Compare dense and SA: file size, KV cache, held-out perplexity and decode speed of one model with several spans.

    python scripts/compare.py tests/models/stdlib-5m 6-9 every:2

MODEL is a Hugging Face folder with a heldout.txt. llama-perplexity computes the perplexity of heldout.txt in windows of
512 tokens with F32 caches. llama-bench measures the decode speed (64 tokens), dense and SA in alternation; the ratio is
the median of the rounds. Tokens per second vary with the load of the machine, so compare the ratio.
"""

import argparse
import json
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

from rich.console import Console

import shareatt_export
from shareatt_export.cli import tables
from shareatt_export.exporting.convert import converted
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.llamacpp import runtime
from shareatt_export.model.facts import read_facts

ROUNDS = 5


def kv_bytes_per_token(model: Path) -> int:
    facts = read_facts(read_header(model))
    return facts.kv_bytes_per_token(facts.attention)


def perplexity(model: Path, text: Path) -> str:
    command = [runtime.tool("llama-perplexity"), "-m", model, "-f", text, "-c", "512", "-ctk", "f32", "-ctv", "f32"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    (found,) = re.findall(r"Final estimate: PPL = ([0-9.]+ \+/- [0-9.]+)", done.stdout + done.stderr)
    return found.replace("+/-", "±")


def tokens_per_second(model: Path) -> float:
    command = [runtime.tool("llama-bench"), "-m", model, "-p", "0", "-n", "64", "-r", "3", "-o", "json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)[0]["avg_ts"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("spans", nargs="+")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, converted(args.model, Path(work), "auto", None) as dense:
        files = {"dense": dense}
        for i, spans in enumerate(args.spans):
            (files[f"--spans {spans}"],) = shareatt_export.export(dense, spans, Path(work) / f"{i}.gguf").files
        speeds: dict[str, list[float]] = {name: [] for name in files}
        for _ in range(ROUNDS):
            for name, file in files.items():
                speeds[name].append(tokens_per_second(file))
        rows = [
            (
                name,
                f"{file.stat().st_size:,}",
                str(kv_bytes_per_token(file)),
                perplexity(file, args.model / "heldout.txt"),
                f"{statistics.median(speeds[name]):.0f}",
                f"{statistics.median(a / b for a, b in zip(speeds[name], speeds['dense'], strict=True)):.2f}",
            )
            for name, file in files.items()
        ]
    columns = ("", "file bytes", "KV bytes per token", "held-out perplexity", "decode tokens/s", "against dense")
    Console(width=120).print(tables.table(rows, columns))


if __name__ == "__main__":
    main()
