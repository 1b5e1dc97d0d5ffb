"""The rows of scripts/ladder.py as a table in Markdown, and as a picture."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS = {
    "dropped": "no attention in its followers",
    "plain": "as it is",
    "align": "+ heads aligned",
    "refit": "+ W_O refitted",
    "healed": "+ healed",
    "healed-mlp": "+ healed, MLPs too",
}


@dataclass(frozen=True)
class Row:
    """`step`: of STEPS, or "dense", or "cache" for a quantised K cache. `name`: the map, or what else it is.

    `scores`: what `shareatt-export eval --json` says of it on each text.
    """

    place: str
    name: str
    step: str
    scores: tuple[dict[str, Any], ...]

    @property
    def kv_bytes(self) -> int:
        return int(self.scores[0]["kv_bytes_per_token"])


def table(rows: Sequence[Row], texts: Sequence[str]) -> Iterator[str]:
    """Yield the lines. Perplexities are changes against the dense model's on the same windows."""
    columns = ["map", "", "KV bytes per token"]
    columns += [f"{text}: {title}" for text in texts for title in ("KL", "perplexity", "same top token")]
    yield f"| {' | '.join(columns)} |"
    yield f"| {' | '.join('---' for _ in columns)} |"
    for before, row in zip([None, *rows], rows, strict=False):
        new = before is None or (row.place, row.step in STEPS) != (before.place, before.step in STEPS)
        first = f"{row.place} `{row.name}`" if row.step in STEPS and row.name != row.place else row.name
        cells = [first if new or row.step == "cache" else "", STEPS.get(row.step, ""), str(row.kv_bytes)]
        cells += [cell for score in row.scores for cell in _cells(score, row.step == "dense")]
        yield f"| {' | '.join(cells)} |"


def _cells(score: dict[str, Any], dense: bool) -> tuple[str, str, str]:
    kl, ratio, same = score["kl"], score["perplexity_ratio"], score["same_top"]
    if dense:
        return "0", f"{score['perplexity']:.2f}", "100 %"
    return (
        f"{kl['mean']:.2g} ± {kl['half_ci95']:.1g}",
        f"{100 * (ratio['mean'] - 1):+.1f} ± {100 * ratio['half_ci95']:.1f} %",
        f"{100 * same['mean']:.1f} ± {100 * same['half_ci95']:.1f} %",
    )


def plot(rows: Sequence[Row], title: str, out: Path) -> None:
    """Draw the KL on the first text."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    places = {row.place: row for row in rows if row.step == "plain"}
    for step, label in STEPS.items():
        points = [row for row in rows if row.step == step]
        kl = [row.scores[0]["kl"] for row in points]
        axes.errorbar(
            [list(places).index(row.place) for row in points],
            [each["mean"] for each in kl],
            [each["half_ci95"] for each in kl],
            marker="x" if step == "dropped" else "o",
            linestyle="none",
            capsize=3,
            label=label,
        )
    for row in rows:
        if row.step == "cache":
            kl_mean = row.scores[0]["kl"]["mean"]
            axes.axhline(kl_mean, linestyle="--", linewidth=0.8, color="grey")
            where = (len(places) - 0.6, kl_mean)
            axes.annotate(f"{row.name} ({row.kv_bytes} bytes)", where, ha="right", va="bottom", fontsize=8)
    labels = [
        f"{place}\n{row.name if row.name != place else ''}\n{row.kv_bytes} bytes" for place, row in places.items()
    ]
    axes.set_xticks(range(len(places)), labels, fontsize=8)
    axes.set(title=title, ylabel="KL to the dense model, nats per token", yscale="log", xlim=(-0.5, len(places) - 0.5))
    axes.legend(fontsize=8)
    figure.savefig(out, dpi=120, format="png")
