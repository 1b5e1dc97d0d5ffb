"""The speedups of `shareatt-export bench` over depth as a PNG: what was measured, and what the arithmetic predicts."""

from importlib.util import find_spec
from pathlib import Path

from ..benchmark.rows import Row
from ..errors import RuntimeProblem


def require_matplotlib(option: str) -> None:
    """Raises RuntimeProblem that says how to get it; called before minutes of measurement."""
    if find_spec("matplotlib") is None:
        raise RuntimeProblem(f"matplotlib is needed for {option}; pip install 'shareatt-export[plot]'")


def plot(rows: list[Row], title: str, out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    figure.suptitle(title)
    for axes, what in zip(figure.subplots(1, 2), ("prefill", "decode"), strict=True):
        panel = [row for row in rows if row.what == what]
        depths = [row.depth for row in panel]
        for setting in panel[0].ratios:
            ratios = [row.ratios[setting] for row in panel]
            middle = [ratio.median for ratio in ratios]
            spread = (
                [ratio.median - ratio.low for ratio in ratios],
                [ratio.high - ratio.median for ratio in ratios],
            )
            axes.errorbar(depths, middle, spread, marker="o", capsize=3, label=setting)
        axes.plot(depths, [row.predicted for row in panel], "k--", label="predicted")
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.set(title=what, xlabel="tokens in the context", ylabel="tokens/s, SA / better dense setting")
        axes.legend()
    figure.savefig(out, dpi=150, format="png")
