#!/usr/bin/env python3
"""Export, evaluate and analyse from Python. Every error is a ShareattError with the fields path, field and reason.

python examples/python_api.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import shareatt_export
from shareatt_export import ExportRequest, ShareattError

MODEL = Path(__file__).parent.parent / "tests" / "models" / "stdlib-5m"


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    text = folder / "text.txt"
    text.write_text((MODEL / "heldout.txt").read_text()[:20_000])

    # Arguments, as on the command line ...
    plain = shareatt_export.export(MODEL, spans="6-9", out=folder / "plain.gguf")
    print(f"{plain.files[0].name}: {plain.job.plan.spans_text}, {plain.n_bytes} bytes copied and compared")

    # ... or one request object, which a program can keep, compare and change.
    request = ExportRequest(MODEL, spans="6-9", out=folder / "aligned.gguf", align=True, text=text)
    aligned = shareatt_export.export(request, progress=lambda step, fraction: None)
    for follower in aligned.followers:
        print(f"layer {follower.layer}: heads {follower.heads} of layers {follower.sources}")

    files = (*plain.files, *aligned.files)
    for score in shareatt_export.evaluate(MODEL, files, text=text, n_ctx=128, n_windows=2, baselines=False).scores:
        print(f"{score.subject.name}: perplexity {score.perplexity:.2f}, KL {score.kl.value:.3f} nats per token")

    analysis = shareatt_export.analyze(MODEL, text=text, n_ctx=128, n_windows=1)
    best = min(analysis.pairs, key=lambda pair: pair.error)
    print(f"layer {best.follower} is served best by layer {best.source}: error {best.error:.3f} of the residual stream")

    try:
        shareatt_export.export(MODEL, spans="6-99", out=folder / "none.gguf")
    except ShareattError as error:
        print(f"refused: {error.field}: {error.reason}")
    else:
        raise SystemExit("a span beyond the last layer must be refused")


if __name__ == "__main__":
    main()
