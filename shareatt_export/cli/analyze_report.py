"""What `shareatt-export analyze` says: a table, JSON, and heatmaps."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ..evaluation.analyze import Analysis, Matrix, ranked
from ..system.staging import publish, staged
from .corpora import MATTERS, corpus_dict
from .provenance import provenance, shape_dict
from .report import PAGE, page_of
from .tables import table

FILES = ("analysis.json", "similarity.png", "error.png", PAGE)


def as_dict(analysis: Analysis) -> dict[str, Any]:
    request = analysis.request
    return {
        "model": str(request.model),
        "shape": shape_dict(analysis.facts),
        "text": corpus_dict(analysis.text),
        "n_ctx": request.n_ctx,
        "windows": analysis.n_windows,
        "sinks_per_window": analysis.sinks_per_window,
        "similarity": analysis.similarity.tolist(),
        "similarity_without_first": analysis.similarity_without_first.tolist(),
        "similarity_without_sinks": analysis.similarity_without_sinks.tolist(),
        "pairs": [
            {
                "source": pair.source,
                "follower": pair.follower,
                "similarity": pair.similarity,
                "error": pair.error,
                "drop_error": pair.drop_error,
                "best_heads": list(pair.best_heads),
                "head_similarity": np.round(pair.head_similarity, 3).tolist(),
            }
            for pair in analysis.pairs
        ],
        "provenance": provenance([request.model]),
    }


def show(analysis: Analysis, console: Console) -> None:
    rows = [
        (
            str(pair.follower),
            str(pair.source),
            f"{pair.similarity:.2f}",
            f"{analysis.similarity_without_sinks[pair.source, pair.follower]:.2f}",
            f"{pair.error:.3f}",
            f"{pair.drop_error:.3f}",
            f"{pair.error / pair.drop_error:.2f}",
            f"{np.mean(np.equal(pair.best_heads, range(len(pair.best_heads)))):.2f}",
        )
        for pair in ranked(analysis)
    ]
    columns = ("layer", "best source", "similarity", "no sinks", "error", "error of none", "ratio", "same heads")
    console.print(table(rows, columns))
    console.print(
        f"{analysis.n_windows} windows of {analysis.request.n_ctx} tokens of {analysis.text.name}. {MATTERS} "
        "Error: of the attention output with the source's attention weights, relative to the residual stream; error of "
        "none: without any attention. Where the ratio is near 1, dropping the attention costs no more than sharing it."
        " Same heads: the share of heads whose most similar head in the source has the same number.",
        highlight=False,
    )


def write(analysis: Analysis, data: dict[str, Any], folder: Path, force: bool) -> None:
    import json

    with staged(folder / FILES[0]) as work:
        json_file, similarity, error, page = (work / name for name in FILES)
        json_file.write_text(json.dumps(data, indent=2) + "\n")
        _plot_similarity(analysis, similarity)
        _plot_error(analysis, error)
        page.write_text(page_of(data, FILES[0]), encoding="utf-8", newline="")
        publish({work / name: folder / name for name in FILES}, [], force)


def _plot_similarity(analysis: Analysis, out: Path) -> None:
    panels = {
        "all positions": analysis.similarity,
        "without the first": analysis.similarity_without_first,
        "without sinks": analysis.similarity_without_sinks,
    }
    _heatmaps(panels, "cosine similarity of attention weights", "layer", "layer", out, high=1.0)


def _plot_error(analysis: Analysis, out: Path) -> None:
    n = analysis.facts.n_layer
    error, ratio = np.full((n, n), np.nan), np.full((n, n), np.nan)
    for pair in analysis.pairs:
        error[pair.follower, pair.source] = pair.error
        ratio[pair.follower, pair.source] = pair.error / pair.drop_error
    panels = {"relative to the residual stream": error, "relative to having no attention": ratio}
    _heatmaps(panels, "error of the attention output", "follower", "source", out)


def _heatmaps(panels: dict[str, Matrix], title: str, y: str, x: str, out: Path, high: float | None = None) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 5), layout="constrained")
    figure.suptitle(title)
    for axes, (name, values) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        image = axes.imshow(values, vmin=0, vmax=high, cmap="viridis")
        axes.set(title=name, xlabel=x, ylabel=y)
        if len(values) <= 16:  # else numbers would be too small to read
            middle = np.nanmax(values) * 0.6 if high is None else high * 0.6
            for (row, column), value in np.ndenumerate(values):
                if np.isfinite(value):
                    colour = "black" if value > middle else "white"
                    text = f"{value:.2f}".removeprefix("0")
                    axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
            axes.set_xticks(range(len(values)))
            axes.set_yticks(range(len(values)))
        figure.colorbar(image, ax=axes, shrink=0.8)
    figure.savefig(out, dpi=150, format="png")
