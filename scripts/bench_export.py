#!/usr/bin/env python3
"""Measure the speed of the tool: an export against cp, header reading, start-up, and a conversion.

    python scripts/bench_export.py build/speed

FOLDER gets a random model of --gb (4) in q8_0 and its exports; the exports are removed again. The programs
alternate, and ratios are medians over --rounds. cp is followed by a sync of its output, because an export syncs too.
Peak memory is that of the process, without the pages of files that the system caches.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from shareatt_export.formats.gguf_encode import header_bytes, raw_string_array, raw_u32
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.llamacpp.runtime import tool
from shareatt_export.llamacpp.source import stock_source
from shareatt_export.model.synthetic import ModelShape, write_random

N_VOCAB = 256_000
TOOL = [sys.executable, "-m", "shareatt_export"]


@dataclass(frozen=True)
class Run:
    seconds: float
    peak_bytes: int


def run(*command: object) -> Run:
    start = time.monotonic()
    child = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(map(str, command))}: status {status}")
    return Run(time.monotonic() - start, usage.ru_maxrss << 10)


def in_turns(rounds: int, *programs: Callable[[], Run]) -> list[list[Run]]:
    done = [[program() for program in programs] for _ in range(rounds)]
    return [list(runs) for runs in zip(*done, strict=True)]


def ratio(ours: list[Run], theirs: list[Run]) -> float:
    """Return how many times faster our runs are."""
    return statistics.median(b.seconds / a.seconds for a, b in zip(ours, theirs, strict=True))


def seconds(runs: list[Run]) -> float:
    return statistics.median(run.seconds for run in runs)


def copying(folder: Path, gb: float, rounds: int) -> str:
    dense, out = folder / "dense.gguf", folder / "out.gguf"
    per_layer = 4 * 4096 * 4096 + 3 * 4096 * 14336
    n_layer = max(2, round(gb * 1e9 / (per_layer * 34 / 32)))
    if not dense.exists():
        write_random(dense, ModelShape(n_layer, 4096, 32, 32, 128, 14336, 32000))

    def cp() -> Run:
        out.unlink(missing_ok=True)
        return run("sh", "-c", 'cp "$1" "$2" && sync "$2"', "sh", dense, out)

    def export() -> Run:
        out.unlink(missing_ok=True)
        return run(*TOOL, dense, "--spans", f"0-{n_layer // 2}", "-o", out)

    ours, theirs = in_turns(rounds, export, cp)
    out.unlink()
    size, peak = dense.stat().st_size, max(run.peak_bytes for run in ours)
    return (
        f"| GGUF of {size / 1e9:.1f} GB to SA GGUF, verified, peak memory {peak / 1e6:.0f} MB | {seconds(ours):.1f} s"
        f" | cp and sync: {seconds(theirs):.1f} s | {ratio(ours, theirs):.2f} |"
    )


def checking(folder: Path, rounds: int) -> Iterator[str]:
    """Yield table rows for the check for NaN and infinity."""
    for type in ("Q8_0", "F16", "Q4_K_S"):
        dense, out = folder / f"{type}.gguf", folder / "out.gguf"
        if type == "Q8_0":
            write_random(dense, ModelShape(2, 4096, 32, 32, 128, 14336, 32000))
        else:
            run(tool("llama-quantize"), "--allow-requantize", "--pure", folder / "Q8_0.gguf", dense, type)

        def export(*options: str, dense: Path = dense, out: Path = out) -> Run:
            out.unlink(missing_ok=True)
            return run(*TOOL, dense, "--spans", "0-1", "-o", out, *options)

        checked, unchecked = in_turns(rounds, export, partial(export, "--allow-nonfinite"))
        yield (
            f"| GGUF of {dense.stat().st_size / 1e9:.1f} GB, {type} | {seconds(checked):.2f} s"
            f" | `--allow-nonfinite`: {seconds(unchecked):.2f} s | {ratio(checked, unchecked):.2f} |"
        )


def header(folder: Path, rounds: int) -> str:
    path = folder / "vocabulary.gguf"
    words = [f"token {i}" for i in range(N_VOCAB)]
    metadata = {
        "tokenizer.ggml.tokens": raw_string_array(words),
        "tokenizer.ggml.merges": raw_string_array([f"{a} {b}" for a, b in pairwise(words)]),
        "general.version": raw_u32(1),
    }
    path.write_bytes(header_bytes(3, metadata, [], 32))

    def read() -> Run:
        start = time.monotonic()
        read_header(path)
        return Run(time.monotonic() - start, 0)

    (runs,) = in_turns(rounds, read)
    path.unlink()
    return f"| header with {N_VOCAB:,} tokens and merges | {seconds(runs):.2f} s | | |"


def start(rounds: int) -> str:
    ours, theirs = in_turns(rounds, lambda: run(*TOOL, "--help"), lambda: run(sys.executable, "-c", "pass"))
    return f"| `--help` | {seconds(ours):.2f} s | python: {seconds(theirs):.2f} s | |"


def checkpoint(model: Path, folder: Path, rounds: int) -> str:
    script = stock_source(None) / "convert_hf_to_gguf.py"
    out = folder / "converted.gguf"

    def converter() -> Run:
        out.unlink(missing_ok=True)
        return run(sys.executable, script, model, "--outfile", out)

    def export() -> Run:
        out.unlink(missing_ok=True)
        return run(*TOOL, model, "--spans", "0-3", "-o", out)

    ours, theirs = in_turns(rounds, export, converter)
    out.unlink()
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    return (
        f"| checkpoint of {size / 1e9:.2f} GB to SA GGUF | {seconds(ours):.1f} s | "
        f"convert_hf_to_gguf.py: {seconds(theirs):.1f} s | {ratio(ours, theirs):.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gb", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    print("| | shareatt-export | beside | ratio |\n| --- | --- | --- | --- |")
    print(copying(args.folder, args.gb, args.rounds), flush=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as work:
        for row in checking(Path(work), args.rounds):
            print(row, flush=True)
        print(header(Path(work), args.rounds), flush=True)
        print(start(args.rounds), flush=True)
        print(checkpoint(random_checkpoint(Path(work) / "model"), Path(work), args.rounds), flush=True)


def random_checkpoint(folder: Path) -> Path:
    """Write a random Llama of 0.5 GB in bf16 with the vocabulary of the demo model."""
    import shutil

    from transformers import LlamaConfig, LlamaForCausalLM

    demo = Path(__file__).parent.parent / "tests" / "models" / "stdlib-5m"
    config = LlamaConfig.from_pretrained(demo)
    for name, value in {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16, "head_dim": 64,
                        "num_attention_heads": 16, "num_key_value_heads": 4}.items():  # fmt: skip
        setattr(config, name, value)
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    for path in demo.glob("*token*"):
        shutil.copy(path, folder / path.name)
    return folder


if __name__ == "__main__":
    main()
