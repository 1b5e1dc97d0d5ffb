"""What `shareatt-export search --unit group` says: a table, JSON with the map for --map, and a picture."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..model.attention_map import AttentionMap, following
from ..model.map_text import map_options
from ..plan.stock import ROTATES_HALVES
from ..searching.group_scores import ScoredAttention
from ..searching.search_groups import GroupSearchResult
from .corpora import MATTERS, corpus_dict, text_options
from .provenance import provenance, shape_dict, sources_list
from .qualities import SEARCH_COLUMNS, quality_cells, quality_dict
from .search_report import FILES
from .tables import change, compact, table

MAP_FILE = "MAP.json"  # where a command expects the map, if the search has written no folder


def export_command(found: GroupSearchResult, folder: Path | None) -> str:
    """Return the command that exports the map; without a folder, the JSON of the report must be kept as MAP.json."""
    return _command(found, ("--map", str(folder / FILES[0]) if folder else MAP_FILE), found.scores.chosen.attention)


def _command(found: GroupSearchResult, options: Sequence[str], attention: AttentionMap) -> str:
    words = ["shareatt-export", str(found.request.model), *options]
    if found.request.refit and any(attention.n_v(layer) for layer in attention.touched):
        words += ["--refit", *text_options(found.request.text)]
    return shlex.join([*words, "-o", "OUT.gguf"])


def _point_command(found: GroupSearchResult, folder: Path | None, attention: AttentionMap) -> str | None:
    """Return the command that exports the map of a point; None for the dense map.

    Where only --map can give a map, it must be kept as MAP.json.
    """
    if attention.is_dense:
        return None
    if attention == found.scores.chosen.attention:
        return export_command(found, folder)
    options = map_options(attention, found.facts.dense_attention, found.facts.is_swa)
    return _command(found, options or ("--map", MAP_FILE), attention)


def actions(attention: AttentionMap) -> Iterator[str]:
    """Yield in words what each group does that does not compute its own attention weights."""
    for layer in attention.touched:
        gone = attention.of_action(layer, "drop")
        if len(gone) == attention.n_head_kv[layer]:
            yield f"layer {layer} is dropped"
            continue
        yield from (f"group {group} is dropped" for group in gone)
        for group in attention.of_action(layer, "follow"):
            heads = " ".join(str(source % attention.stride) for source in attention.of(group))
            noun = "head" if len(attention.of(group)) == 1 else "heads"
            yield f"group {group} follows {noun} {heads} of layer {attention.source_layer(group)}"


def as_dict(found: GroupSearchResult, folder: Path | None) -> dict[str, Any]:
    request, scores = found.request, found.scores

    def points(scored: Iterable[ScoredAttention]) -> list[dict[str, Any]]:
        return [_dict(each, _point_command(found, folder, each.attention)) for each in scored]

    return {
        "model": str(request.model),
        "shape": shape_dict(found.facts),
        "text": corpus_dict(found.text),
        "n_ctx": request.n_ctx,
        "windows": found.n_windows,
        "refit": request.refit,
        "fit_windows": found.n_fit_windows,
        "drop_only": request.drop_only,
        "source_heads": sources_list(scores.chosen.attention),
        "actions": list(actions(scores.chosen.attention)),
        "command": export_command(found, folder),
        "maps_measured": found.n_measured,
        "search_kl": found.cost,
        "predicted_decode": {"depth": request.decode_at, "speedup": found.predicted_speedup},
        "kl_of_single_drops": [
            {"layer": groups[0].layer, "groups": [group.number for group in groups], "kl": kl}
            for groups, kl in found.drops.items()
        ],
        "dense": points([scores.dense])[0],
        "found": points([scores.chosen])[0],
        "simple": points(scores.simple),
        "quantised": points(scores.quantised),
        "as_good": [each.name for each in scores.as_good],
        "provenance": provenance([request.model]),
    }


def _dict(scored: ScoredAttention, command: str | None) -> dict[str, Any]:
    return {
        "name": scored.name,
        "source_heads": sources_list(scored.attention),
        "type_k": scored.type_k.name.lower(),
        "kv_bytes_per_token": scored.kv_bytes_per_token,
        "command": command,
        **quality_dict(scored.quality),
    }


def show(found: GroupSearchResult, folder: Path | None, console: Console) -> None:
    scores, request = found.scores, found.request
    grid = table([], ("map", "KV per token", "saved", *SEARCH_COLUMNS))
    for points in ((scores.dense, scores.chosen), scores.simple, scores.quantised):
        for point in points:
            grid.add_row(*_row(point, scores.dense))
        grid.add_section()
    console.print(compact(grid, n_names=1))
    measured = f"{found.n_measured} maps measured"
    if request.refit:
        measured += f", output projections refitted on {found.n_fit_windows} windows"
    lines = [
        f"Scored on the last quarter of {found.text.name}, in windows of {request.n_ctx} tokens; searched on the rest "
        f"({measured}). ±: half of a 95 % confidence interval. KL in nats. {MATTERS}",
        f"Found: {'; '.join(actions(scores.chosen.attention)) or 'nothing to change'}.",
        f"Predicted by bytes read: decoding after {request.decode_at} tokens is {found.predicted_speedup:.2f} times as "
        "fast.",
    ]
    if scores.as_good:
        names = ", ".join(each.name for each in scores.as_good)
        lines.append(f"These take no more memory, and lose no more on this text: {names}.")
    console.print("\n".join(lines), highlight=False)
    commands = [export_command(found, folder)]
    if found.facts.arch in ROTATES_HALVES and not any(following(scores.chosen.attention)):
        commands.append("shareatt-export stock OUT.gguf -o STOCK.gguf    # for unpatched llama.cpp")
    console.print("\n" + "".join(f"    {command}\n" for command in commands), highlight=False, soft_wrap=True)


def _row(point: ScoredAttention, dense: ScoredAttention) -> tuple[str, ...]:
    saved = change(dense.kv_bytes_per_token, point.kv_bytes_per_token)
    return (point.name, str(point.kv_bytes_per_token), saved, *quality_cells(point.quality))


def plot(found: GroupSearchResult, out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    scores = found.scores
    for point in (scores.chosen, *scores.simple, *scores.quantised):
        marker = "o" if point is scores.chosen else "x"
        place = point.kv_bytes_per_token, point.quality.kl.value
        axes.plot(*place, marker, color="black")
        axes.annotate(point.name, place, xytext=(5, 5), textcoords="offset points")
    axes.set(xlabel="bytes of the KV cache per token", ylabel="KL to the dense model, nats per token", yscale="log")
    figure.savefig(out, dpi=150, format="png")
