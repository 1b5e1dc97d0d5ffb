#!/usr/bin/env python3
"""Run a soak test: clients use llama-server with an SA model for half an hour, without errors or growth of memory.

    python scripts/soak.py --minutes 30 --seed 1

The model is the trained demo model, exported with --spans, or dense with --spans dense, for comparison. The exit status
is 1 if a request fails, if the memory of the server grows by more than 2 %, or if the logits of a fixed prompt are not
bit for bit the same afterwards.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import shareatt_export
from shareatt_export.exporting.convert import converted
from shareatt_export.llamacpp import runtime
from tests.support import tiny_models
from tests.support.server import PORT, serving
from tests.support.soak import OPTIONS, soak

TEXT = tiny_models.DEMO / "heldout.txt"
GROWTH = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--spans", default="6-9")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "shared.gguf"
        if args.spans == "dense":
            with converted(tiny_models.DEMO, folder, "auto", None) as made:
                made.replace(model)
        else:
            shareatt_export.export(tiny_models.DEMO, args.spans, model)
        command = [runtime.tool("llama-server"), "-m", model, "--port", PORT, *OPTIONS, "--slot-save-path", folder]
        with serving(*command, log=folder / "log") as server:
            done = soak(server, [TEXT.read_text()], 60 * args.minutes, args.clients, args.seed)
    print(f"seed {args.seed}, {args.minutes:g} minutes, {args.clients} clients: {done.turns.total()} turns")
    print(", ".join(f"{turn.replace('_', ' ')} {times}" for turn, times in done.turns.most_common()))
    tenths = " ".join(f"{n_bytes / 1e6:.1f}" for n_bytes in done.tenths)
    print(f"memory: MB at first {done.rss[0] / 1e6:.1f}, in each tenth {tenths}, growth {done.growth:.2%}")
    print(f"logits: {'the same' if done.before == done.after else 'OTHERS'}")
    print("\n".join([f"errors: {len(done.errors)}", *done.errors]))
    sys.exit(bool(done.errors) or done.growth > GROWTH or done.before != done.after)


if __name__ == "__main__":
    main()
