"""What `shareatt-export bench` says, as a table and as JSON."""

from rich.console import Console

from ..benchmark.measure import Measured
from ..benchmark.rows import Ratio, Row, as_dict, rows
from .tables import table

__all__ = ["as_dict", "show"]


def show(measured: Measured, console: Console) -> None:
    request = measured.request
    values = [setting.name for setting in measured.settings]
    shared = [setting.name for setting in measured.settings if setting.shared]
    columns = ["", "depth", *values, *(f"{name} / better dense" for name in shared), "predicted"]
    cells = [_bench_cells(row, values, shared) for row in rows(measured)]
    console.print(table(cells, columns))
    console.print(
        f"* marks the faster dense setting (for attention: flash attention on). Prefill of {request.prompt} tokens, "
        f"decode of {request.generate}; medians of {request.rounds} rounds (low-high), {request.threads} threads. "
        f"Attention: of one layer; in SA, of a follower. Memory: at context {request.n_ctx}; the peak includes the "
        "mapped weights, the anonymous peak does not.",
        highlight=False,
    )


def _bench_cells(row: Row, values: list[str], shared: list[str]) -> list[str]:
    unit, scale = {"bytes": ("MiB", 2**-20), "seconds": ("ms", 1000.0)}.get(row.unit, (row.unit, 1.0))

    def value(name: str) -> str:
        number = scale * row.values[name]
        return f"{number:.{0 if number >= 1000 else 2}f}" + " *" * (name == row.baseline)

    def ratio(of: Ratio) -> str:
        return f"{of.median:.3f}" if of.low == of.high else f"{of.median:.2f} ({of.low:.2f}-{of.high:.2f})"

    depth = "" if row.depth is None else str(row.depth)
    predicted = "" if row.predicted is None else f"{row.predicted:.3f}"
    ratios = [ratio(row.ratios[name]) for name in shared]
    return [f"{row.what}, {unit}", depth, *map(value, values), *ratios, predicted]
