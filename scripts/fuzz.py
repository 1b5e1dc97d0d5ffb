#!/usr/bin/env python3
"""Mutate models for a given time: each mutant must be refused with its name, or exported to a file that verifies.

    python scripts/fuzz.py --seed 7 --minutes 10 --keep build/findings
    python scripts/fuzz.py --checkpoints     # Hugging Face folders, with the checks before conversion

Any other outcome is a finding: the script prints the number of the mutant and keeps its file. With --load, llama.cpp
also runs each export in a child process. If it can run the mutant, it must not refuse the export or crash.
"""

import argparse
import collections
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.support import parity, small_gguf
from tests.support.faults import json_mutants
from tests.support.faults.checkpoint_folders import checkpoint
from tests.support.faults.gguf_mutants import gguf_mutants
from tests.support.faults.load_child import try_load
from tests.support.faults.mutant_outcomes import checkpoint_outcome, gguf_outcome

Mutants = Iterator[tuple[Path, Callable[[], str]]]  # the broken file, and a function that returns its outcome


def ggufs(folder: Path, seed: int, load: bool) -> Mutants:
    path = folder / "mutant.gguf"
    dense = small_gguf.write_dense(folder / "dense.gguf", q8_0=True, n_layer=3)
    for data in gguf_mutants(dense, seed, sys.maxsize):
        path.write_bytes(data)
        yield path, partial(one, path, folder / "out.gguf", load)


def checkpoints(folder: Path, seed: int) -> Mutants:
    for path in json_mutants.mutants(checkpoint(folder / "model", shards=2), seed, sys.maxsize):
        yield path, partial(checkpoint_outcome, path)


def one(path: Path, out: Path, load: bool) -> str:
    seen = gguf_outcome(path, out)
    if load and seen == "exported" and try_load(parity.lib(), path).outcome == "decoded":
        if (of := try_load(parity.lib(), out)).outcome != "decoded":
            raise RuntimeError(f"llama.cpp runs the mutant, but not its export: {of.outcome}: {of.said}")
        return "exported and run"
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--keep", type=Path, default=Path("build/findings"))
    parser.add_argument("--load", action="store_true")
    parser.add_argument("--checkpoints", action="store_true")
    args = parser.parse_args()
    end, seen = time.monotonic() + 60 * args.minutes, collections.Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = checkpoints(folder, args.seed) if args.checkpoints else ggufs(folder, args.seed, args.load)
        for number, (path, becomes) in enumerate(made):
            if time.monotonic() > end:
                break
            try:
                seen[becomes()] += 1
            except Exception:
                seen["findings"] += 1
                args.keep.mkdir(parents=True, exist_ok=True)
                kept = shutil.copy(path, args.keep / f"{args.seed}-{number}-{path.name}")
                print(f"{kept}:\n{traceback.format_exc()}", flush=True)
    print(f"seed {args.seed}, {args.minutes:g} minutes: {sum(seen.values())} mutants, {dict(seen)}")


if __name__ == "__main__":
    main()
