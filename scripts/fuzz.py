#!/usr/bin/env python3
"""Mutated GGUFs, for as long as one likes: each is refused by name, or exported to a file that verifies.

    python scripts/fuzz.py --seed 7 --minutes 10 --keep build/findings

Whatever else happens is a finding: it is printed with the number of the mutant, and the mutant is kept. With --load
llama.cpp loads each export too, in a process of its own, where it loads the mutant: it must not refuse or crash.
"""

import argparse
import collections
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests import parity, small
from tests.faults.loader import OUTCOMES, tried
from tests.faults.mutate import mutants
from tests.faults.test_sweeps import outcome


def loads(path: Path) -> bool:
    """Whether llama.cpp loads a model; raises where it dies."""
    of = tried(parity.lib(), path)
    if of.outcome not in OUTCOMES.values():
        raise RuntimeError(f"llama.cpp: {of.outcome}: {of.said}")
    return of.outcome != "refused"


def one(path: Path, out: Path, load: bool) -> str:
    seen = outcome(path, out)
    if load and seen == "exported":
        if loads(path) and not loads(out):
            raise RuntimeError("llama.cpp loads the mutant, but not its export")
        return "exported and tried"
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--keep", type=Path, default=Path("build/findings"))
    parser.add_argument("--load", action="store_true")
    args = parser.parse_args()
    end, seen = time.monotonic() + 60 * args.minutes, collections.Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "mutant.gguf", Path(folder) / "out.gguf"
        dense = small.write_dense(Path(folder) / "dense.gguf", q8_0=True, n_layer=3)
        for number, data in enumerate(mutants(dense, args.seed, sys.maxsize)):
            if time.monotonic() > end:
                break
            path.write_bytes(data)
            try:
                seen[one(path, out, args.load)] += 1
            except Exception:
                seen["findings"] += 1
                args.keep.mkdir(parents=True, exist_ok=True)
                kept = args.keep / f"{args.seed}-{number}.gguf"
                kept.write_bytes(data)
                print(f"{kept}:\n{traceback.format_exc()}", flush=True)
    print(f"seed {args.seed}, {args.minutes:g} minutes: {sum(seen.values())} mutants, {dict(seen)}")


if __name__ == "__main__":
    main()
