"""How well a model predicts a text, as the reports of several commands write it: JSON, and the cells of a table."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..evaluation.divergence import Quality
from ..evaluation.intervals import Mean


def mean_dict(mean: Mean) -> dict[str, float | None]:
    return {"mean": mean.value, "half_ci95": None if math.isnan(mean.half) else mean.half}


def quality_dict(quality: Quality) -> dict[str, Any]:
    return {
        "nll": mean_dict(quality.nll),
        "perplexity": quality.perplexity,
        "perplexity_ratio": mean_dict(quality.perplexity_ratio),
        "kl": mean_dict(quality.kl) | {"p99": quality.kl_p99, "max": quality.kl_max},
        "same_top": mean_dict(quality.same_top),
    }


def with_interval(mean: Mean, value: str, half: str, unit: str = "") -> str:
    """Return a mean and half of its interval, in these formats. There is no interval of a single window."""
    return format(mean.value, value) + ("" if math.isnan(mean.half) else f" ± {mean.half:{half}}") + unit


def _change(quality: Quality) -> str:
    """Return by how much the perplexity is higher than that of the dense model; nothing for the dense model itself."""
    ratio = quality.perplexity_ratio
    change = Mean(100 * (ratio.value - 1), 100 * ratio.half)
    return with_interval(change, "+.1f", ".1f", " %") if quality.kl_max else ""


QUALITY_CELLS: dict[str, Callable[[Quality], str]] = {
    "perplexity": lambda quality: f"{quality.perplexity:.2f}",
    "change": _change,
    "KL": lambda quality: with_interval(quality.kl, ".2g", ".1g"),
    "KL p99": lambda quality: f"{quality.kl_p99:.2g}",
    "KL max": lambda quality: f"{quality.kl_max:.2g}",
    "same top": lambda quality: f"{100 * quality.same_top.value:.1f} %",
}
SEARCH_COLUMNS = ("KL", "perplexity", "change", "same top")


def quality_cells(quality: Quality, columns: Sequence[str] = SEARCH_COLUMNS) -> Iterator[str]:
    yield from (QUALITY_CELLS[column](quality) for column in columns)
