"""What `shareatt-export bench` says, as a table and as JSON."""

from typing import Any

from rich.console import Console

from ..benchmark.measure import Measured
from ..benchmark.rows import Ratio, Row, rows
from ..benchmark.rows import as_dict as measured_dict
from ..benchmark.settings import KERNELS
from ..benchmark.uses import Use, uses
from .provenance import provenance, shape_dict, sources_list
from .tables import table

USES = (
    " Machine: how fast its threads read memory, which limits decode, and multiply matrices of 32-bit numbers, which "
    "limits the attention of a prefill (here of a layer that computes its own weights)."
)


def as_dict(measured: Measured) -> dict[str, Any]:
    request, pair = measured.request, measured.pair
    return measured_dict(measured) | {
        "shape": shape_dict(pair.facts),
        "source_heads": sources_list(pair.sa_facts.attention),
        "provenance": provenance([request.dense, request.sa]),
    }


def show(measured: Measured, console: Console) -> None:
    request = measured.request
    values = [setting.name for setting in measured.settings]
    shared = [setting.name for setting in measured.settings if setting.shared]
    patched = [setting.name for setting in measured.settings if setting.patched]
    compared = [("stock", name) for name in patched] + [("kernels", name) for name in shared if KERNELS in patched]
    columns = ["", "depth", *values, *(f"{name} / {to}" for to, name in compared), "predicted"]
    cells = [_bench_cells(row, values, compared) for row in rows(measured)]
    console.print(table(cells, columns))
    if used := uses(measured):
        console.print(table([_use_cells(use, values) for use in used], ["", "depth", *values, "machine"]))
    console.print(
        "* marks stock, the faster setting of the unpatched llama.cpp (for attention: flash attention on). Kernels: "
        "the dense model with the kernels of SA. The prediction is of SA / kernels, which is what sharing gains. "
        f"Prefill of {request.prompt} tokens, decode of {request.generate}; medians of {request.rounds} rounds "
        f"(low-high), {request.threads} threads. Attention: of one layer; in SA, of a follower. Memory: at context "
        f"{request.n_ctx}; the peak includes the mapped weights, the anonymous peak does not." + USES * bool(used),
        highlight=False,
    )


def _use_cells(use: Use, values: list[str]) -> list[str]:
    numbers = [*(use.values[name] for name in values), use.limit]
    return [f"{use.what}, G{use.unit}", str(use.depth), *(f"{number / 1e9:.1f}" for number in numbers)]


def _bench_cells(row: Row, values: list[str], compared: list[tuple[str, str]]) -> list[str]:
    unit, scale = {"bytes": ("MiB", 2**-20), "seconds": ("ms", 1000.0)}.get(row.unit, (row.unit, 1.0))

    def value(name: str) -> str:
        number = scale * row.values[name]
        return f"{number:.{0 if number >= 1000 else 2}f}" + " *" * (name == row.baseline)

    def ratio(of: Ratio) -> str:
        return f"{of.median:.3f}" if of.low == of.high else f"{of.median:.2f} ({of.low:.2f}-{of.high:.2f})"

    depth = "" if row.depth is None else str(row.depth)
    predicted = "" if row.predicted is None else f"{row.predicted:.3f}"
    ratios = [ratio((row.ratios if to == "stock" else row.sharing)[name]) for to, name in compared]
    return [f"{row.what}, {unit}", depth, *map(value, values), *ratios, predicted]
