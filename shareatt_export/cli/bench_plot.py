"""The speedups of `shareatt-export bench` by depth as a PNG: what was measured, and what arithmetic predicts."""

from pathlib import Path

from ..benchmark.measure import Measured
from ..benchmark.rows import rows


def plot(measured: Measured, out: Path) -> None:
    from matplotlib.figure import Figure

    table, title = rows(measured), Path(measured.request.sa).name

    figure = Figure(figsize=(9, 4), layout="constrained")
    figure.suptitle(title)
    for axes, what in zip(figure.subplots(1, 2), ("prefill", "decode"), strict=True):
        panel = [row for row in table if row.what == what]
        depths = [row.depth for row in panel]
        for setting in panel[0].ratios:
            ratios = [row.ratios[setting] for row in panel]
            middle = [ratio.median for ratio in ratios]
            spread = (
                [ratio.median - ratio.low for ratio in ratios],
                [ratio.high - ratio.median for ratio in ratios],
            )
            axes.errorbar(depths, middle, spread, marker="o", capsize=3, label=setting)
        axes.plot(depths, [row.predicted for row in panel], "k--", label="predicted, from the same kernels")
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.set(
            title=what,
            xlabel="tokens in the context",
            ylabel="tokens/s / those of the better setting of stock llama.cpp",
        )
        axes.legend()
    figure.savefig(out, dpi=150, format="png")
