#!/usr/bin/env python3
"""llama-server with an SA model, and clients at once for half an hour: no error, no growth, the same logits afterwards.

    python scripts/soak.py --minutes 30 --seed 1

Uses the trained demo model, exported with --spans, or left as it is with --spans dense, to compare with. Status 1 if a
request went wrong, if the server's memory grew by more than 2 %, or if a fixed prompt's logits are not bit by bit what
they were before.
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
