"""What `shareatt-export search` says: a table, JSON, and a picture of quality against KV bytes."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from ..model.attention_map import without_layers
from ..model.spans import followers, runs, spans_of, spans_text
from ..searching.scoring import ScoredMap
from ..searching.search import SearchResult
from ..system.staging import publish, staged
from .corpora import MATTERS, corpus_dict, text_options
from .provenance import provenance, shape_dict, sources_list
from .qualities import SEARCH_COLUMNS, quality_cells, quality_dict
from .report import PAGE, page_of
from .tables import compact, table

FILES = ("search.json", "pareto.png", PAGE)
AS_GOOD = "Dropping attention in these layers costs no more than sharing it, and saves more memory."


def export_command(found: SearchResult, point: ScoredMap) -> str | None:
    """Return the command that exports the map of a point; None for the dense map."""
    request = found.request
    if not followers(point.source_layers):
        return None
    words = ["shareatt-export", str(request.model), "--spans", spans_text(spans_of(point.source_layers))]
    words += ["--align"] * request.align + ["--refit"] * request.refit
    words += text_options(request.text) * (request.align or request.refit)
    return shlex.join([*words, "-o", "OUT.gguf"])


def as_dict(found: SearchResult) -> dict[str, Any]:
    request = found.request
    return {
        "model": str(request.model),
        "shape": shape_dict(found.facts),
        "text": corpus_dict(found.text),
        "n_ctx": request.n_ctx,
        "windows": found.n_windows,
        "align": request.align,
        "refit": request.refit,
        "spans": found.spans_text,
        "source_layers": list(found.chosen.source_layers),
        "command": export_command(found, found.chosen),
        "maps_measured": found.n_measured,
        "kl_of_single_followers": {str(layer): kl for layer, kl in found.singles.items()},
        "search_kl": found.cost,
        "path": [_point_dict(found, point) for point in found.path],
        "dropped": _point_dict(found, found.dropped) | _dropped_dict(found) if found.dropped else None,
        "dropping_is_as_good": found.dropping_is_as_good,
        "baselines": [_point_dict(found, point) for point in found.baselines],
        "provenance": provenance([request.model]),
    }


def _point_dict(found: SearchResult, point: ScoredMap) -> dict[str, Any]:
    return {
        "name": point.name,
        "source_layers": list(point.source_layers),
        "source_heads": sources_list(found.facts.of_layers(point.source_layers)),
        "followers": len(followers(point.source_layers)),
        "type_k": point.type_k.name.lower(),
        "kv_bytes_per_token": point.kv_bytes_per_token,
        "command": export_command(found, point),
        **quality_dict(point.quality),
    }


def _dropped_dict(found: SearchResult) -> dict[str, Any]:
    """Return the map that drops what follows in the chosen map, and the command that exports it."""
    layers = followers(found.chosen.source_layers)
    words = ["shareatt-export", str(found.request.model), "--drop", ",".join(runs(layers)), "-o", "OUT.gguf"]
    attention = without_layers(found.facts.dense_attention, layers)
    return {"source_heads": sources_list(attention), "command": shlex.join(words)}


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
        console.print(f"\n    {export_command(found, found.chosen)}\n", highlight=False, soft_wrap=True)


def _row(point: ScoredMap) -> tuple[str, ...]:
    n_followers = len(followers(point.source_layers))
    return (point.name, str(n_followers), str(point.kv_bytes_per_token), *quality_cells(point.quality))


def write(data: dict[str, Any], plot: Callable[[Path], None], folder: Path, force: bool) -> None:
    """Write the report, its picture and its page, all or none."""
    with staged(folder / FILES[0]) as work:
        json_file, picture, page = (work / name for name in FILES)
        json_file.write_text(json.dumps(data, indent=2) + "\n")
        plot(picture)
        page.write_text(page_of(data, FILES[0]), encoding="utf-8", newline="")
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
