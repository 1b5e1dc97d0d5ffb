"""What models lose over depth as a PNG: perplexity relative to the dense model's, by position."""

import math
from pathlib import Path

from ..evaluation.evaluate import Evaluation


def plot(evaluation: Evaluation, out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for i, score in enumerate(evaluation.scores[1:], 1):
        ratios = [bucket.models[i].log_ratio for bucket in evaluation.positions]
        middle = [math.exp(ratio.value) for ratio in ratios]
        spread = (
            [m - math.exp(ratio.value - ratio.half) for m, ratio in zip(middle, ratios, strict=True)],
            [math.exp(ratio.value + ratio.half) - m for m, ratio in zip(middle, ratios, strict=True)],
        )
        axes.errorbar(range(len(middle)), middle, spread, marker="o", capsize=3, label=score.subject.name)
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xticks(range(len(evaluation.positions)), [f"{b.first}-{b.last}" for b in evaluation.positions])
    axes.set(title=evaluation.text.name, xlabel="position in the window", ylabel="perplexity, relative to dense")
    axes.legend()
    figure.savefig(out, dpi=150, format="png")
