"""What `shareatt-export analyze A B C` says of checkpoints of one model: how alike layers attend, over training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..evaluation.analyze import Analysis, Matrix, neighbour_similarity
from ..report.measurements import measurement
from ..report.page import page
from ..system.staging import publish, staged
from .corpora import MATTERS
from .report import PAGE
from .tables import table

PICTURE = "training.png"
KINDS = {  # of similarity, with the fields of an Analysis
    "all positions": "similarity",
    "without the first": "similarity_without_first",
    "without sinks": "similarity_without_sinks",
}


def files(n_models: int) -> tuple[str, ...]:
    """Return the names of what is written for so many models."""
    return (*(f"analysis-{i + 1}.json" for i in range(n_models)), PICTURE, PAGE)


def _similarity(analysis: Analysis, kind: str) -> Matrix:
    found: Matrix = getattr(analysis, KINDS[kind])
    return found


def show(analyses: Sequence[Analysis], console: Console) -> None:
    rows = [
        (
            str(each.request.model),
            *(f"{neighbour_similarity(each.facts, _similarity(each, kind)):.3f}" for kind in KINDS),
            f"{each.sinks_per_window:.1f}",
        )
        for each in analyses
    ]
    console.print(table(rows, ("model", *KINDS, "sinks per window")))
    first = analyses[0]
    console.print(
        f"Mean cosine similarity of the attention weights of neighbouring layers. {first.n_windows} windows of "
        f"{first.request.n_ctx} tokens of {first.text.name}. {MATTERS}",
        highlight=False,
    )


def write(analyses: Sequence[Analysis], data: Sequence[dict[str, Any]], folder: Path, force: bool) -> None:
    """Write the JSON of each model, the picture, and the page of all of them."""
    names = files(len(analyses))
    with staged(folder / names[0]) as work:
        for name, each in zip(names, data, strict=False):
            (work / name).write_text(json.dumps(each, indent=2) + "\n")
        _plot(analyses, work / PICTURE)
        measurements = [measurement(each, name) for name, each in zip(names, data, strict=False)]
        (work / PAGE).write_text(page(measurements), encoding="utf-8", newline="")
        publish({work / name: folder / name for name in names}, [], force)


def _plot(analyses: Sequence[Analysis], out: Path) -> None:
    from matplotlib.figure import Figure

    n, shown = len(analyses), ("all positions", "without sinks")
    figure = Figure(figsize=(2.6 * n + 1, 8.5), layout="constrained")
    grid = figure.add_gridspec(3, n)
    for row, kind in enumerate(shown):
        for column, each in enumerate(analyses):
            axes = figure.add_subplot(grid[row, column])
            image = axes.imshow(_similarity(each, kind), vmin=0, vmax=1, cmap="viridis")
            axes.set_title(f"{Path(each.request.model).stem}\n{kind}", fontsize=9)
            axes.tick_params(labelsize=7)
        figure.colorbar(image, ax=axes, shrink=0.8)
    axes = figure.add_subplot(grid[2, :])
    for kind in KINDS:
        values = [neighbour_similarity(each.facts, _similarity(each, kind)) for each in analyses]
        axes.plot(range(n), values, "o-", label=kind)
    axes.set_xticks(range(n), [Path(each.request.model).stem for each in analyses])
    axes.set(ylim=(0, 1), ylabel="similarity of neighbouring layers")
    axes.legend()
    figure.savefig(out, dpi=120, format="png")
