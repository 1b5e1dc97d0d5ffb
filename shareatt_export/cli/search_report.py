"""What `shareatt-export search` says: a table, JSON, and a picture of quality against KV bytes."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from ..model.spans import followers
from ..searching.scoring import ScoredMap
from ..searching.search import SearchResult
from ..system.staging import publish, staged
from .corpora import MATTERS, corpus_dict
from .qualities import SEARCH_COLUMNS, quality_cells, quality_dict
from .tables import compact, table

FILES = ("search.json", "pareto.png")
AS_GOOD = "Dropping attention in these layers costs no more than sharing it, and saves more memory."


def export_command(found: SearchResult) -> str:
    request = found.request
    words = ["shareatt-export", str(request.model), "--spans", found.spans_text]
    words += ["--align"] * request.align + ["--refit"] * request.refit
    return shlex.join([*words, "-o", "OUT.gguf"])


def as_dict(found: SearchResult) -> dict[str, Any]:
    request = found.request
    return {
        "model": str(request.model),
        "text": corpus_dict(found.text),
        "n_ctx": request.n_ctx,
        "align": request.align,
        "refit": request.refit,
        "spans": found.spans_text,
        "source_layers": list(found.chosen.source_layers),
        "command": export_command(found) if found.spans_text else None,
        "maps_measured": found.n_measured,
        "kl_of_single_followers": {str(layer): kl for layer, kl in found.singles.items()},
        "search_kl": found.cost,
        "path": [_point_dict(point) for point in found.path],
        "dropped": _point_dict(found.dropped) if found.dropped else None,
        "dropping_is_as_good": found.dropping_is_as_good,
        "baselines": [_point_dict(point) for point in found.baselines],
    }


def _point_dict(point: ScoredMap) -> dict[str, Any]:
    return {
        "name": point.name,
        "source_layers": list(point.source_layers),
        "followers": len(followers(point.source_layers)),
        "kv_bytes_per_token": point.kv_bytes_per_token,
        **quality_dict(point.quality),
    }


def show(found: SearchResult, console: Console) -> None:
    columns = ("spans", "followers", "KV per token", *SEARCH_COLUMNS)
    others = [*found.baselines, *([found.dropped] if found.dropped else [])]
    grid = table(map(_row, found.path), columns)
    grid.add_section()
    for point in others:
        grid.add_row(*_row(point))
    console.print(compact(grid, n_names=1))
    request = found.request
    lines = [
        f"Scored on the last quarter of {found.text.name}, in windows of {request.n_ctx} tokens; fitted and searched "
        f"on the rest ({found.n_measured} maps measured). ±: half of a 95 % confidence interval. KL in nats. "
        f"{MATTERS}"
    ]
    if found.singles:
        alone = sum(found.singles[layer] for layer in followers(found.chosen.source_layers))
        lines.append(
            f"The followers cost {found.cost:.2g} together; measured one at a time they add up to {alone:.2g}."
        )
    if found.dropping_is_as_good:
        lines.append(AS_GOOD)
    console.print("\n".join(lines), highlight=False)
    if found.spans_text:
        console.print(f"\n    {export_command(found)}\n", highlight=False, soft_wrap=True)


def _row(point: ScoredMap) -> tuple[str, ...]:
    n_followers = len(followers(point.source_layers))
    return (point.name, str(n_followers), str(point.kv_bytes_per_token), *quality_cells(point.quality))


def write(data: dict[str, Any], plot: Callable[[Path], None], folder: Path, force: bool) -> None:
    """Write the report and its picture, both or none."""
    with staged(folder / FILES[0]) as work:
        json_file, picture = (work / name for name in FILES)
        json_file.write_text(json.dumps(data, indent=2) + "\n")
        plot(picture)
        publish({work / name: folder / name for name in FILES}, [], force)


def plot(found: SearchResult, out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    path = found.path[1:]
    axes.errorbar(
        [point.kv_bytes_per_token for point in path],
        [point.quality.kl.value for point in path],
        [point.quality.kl.half for point in path],
        marker="o",
        capsize=3,
        label="found",
    )
    for point in [*found.baselines, *([found.dropped] if found.dropped else [])]:
        axes.plot(point.kv_bytes_per_token, point.quality.kl.value, "x", color="black")
        name = point.name.split(": ")[0]
        place = (point.kv_bytes_per_token, point.quality.kl.value)
        axes.annotate(name, place, xytext=(5, 5), textcoords="offset points")
    for point in path:
        place = (point.kv_bytes_per_token, point.quality.kl.value)
        axes.annotate(point.name, place, xytext=(5, -12), textcoords="offset points", fontsize=8)
    axes.set(xlabel="bytes of the KV cache per token", ylabel="KL to the dense model, nats per token", yscale="log")
    axes.legend()
    figure.savefig(out, dpi=150, format="png")
