#!/usr/bin/env python3
"""Run `shareatt-export bench` on models of real shapes with random weights: 16 layers, f16 cache.

    python scripts/bench_shapes.py build/shapes --json build/shapes/measure.json

FOLDER keeps the models (about 1.1 GB each as q8_0). The vocabulary is small (32000) and tied, so that the layers are
measured and not the output matrix. The maps are "shared" (spans 8-15) and "dropped" (half of the KV groups of layers 8
to 15). With one thread, CPU time is taken, and shapes can run at the same time: `--shapes GQA` in one terminal, and
`--shapes MHA` in another.

    python scripts/bench_shapes.py build/shapes --table GQA.json MHA.json    # the table of the docs, from --json files
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from shareatt_export.benchmark.measure import measure
from shareatt_export.benchmark.request import BenchRequest
from shareatt_export.benchmark.rows import as_dict
from shareatt_export.benchmark.settings import KERNELS
from shareatt_export.cli import bench_report
from shareatt_export.cli.progress_bar import steps
from shareatt_export.exporting.job import opened
from shareatt_export.exporting.pipeline import export
from shareatt_export.exporting.request import ExportRequest
from shareatt_export.llamacpp.quantize import Quantisation, quantize
from shareatt_export.model.synthetic import ModelShape, write_random

SHAPES = {
    "GQA": ModelShape(n_layer=16, n_embd=2048, n_head=32, n_head_kv=8, head_dim=64, n_ff=8192, n_vocab=32000),
    "MHA": ModelShape(n_layer=16, n_embd=2048, n_head=16, n_head_kv=16, head_dim=128, n_ff=5632, n_vocab=32000),
}
LAYERS = range(8, 16)
MAPS = "shared", "dropped"


def written(name: str, type: str, folder: Path) -> Path:
    """Return the dense model of a shape in a type of weights; write it if it does not exist."""
    dense = folder / f"{name}-{type}.gguf"
    if not dense.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if type == "q8_0":
            write_random(dense, SHAPES[name])
        else:
            quantize(written(name, "q8_0", folder), dense, Quantisation(type, again=True), lambda fraction: None)
    return dense


def exported(name: str, dense: Path, kind: str) -> Path:
    """Return the SA model of a dense one with a map; write it if it does not exist."""
    sa = dense.with_name(f"{dense.stem}-{kind}.gguf")
    if not sa.exists():
        first_half = f"0-{SHAPES[name].n_head_kv // 2 - 1}"
        spans = f"{LAYERS[0]}-{LAYERS[-1]}" if kind == "shared" else None
        drop = ",".join(f"{layer}.{first_half}" for layer in LAYERS) if kind == "dropped" else None
        with opened(ExportRequest(dense, spans, sa, drop=drop)) as job:
            export(job)
    return sa


def table(measured: dict[str, Any]) -> Iterator[str]:
    """Yield a Markdown table: what kernels gain, what the map gains with them, its prediction, and both together."""
    columns = (f"{name}: {column}" for name in measured for column in ("kernels", "map", "predicted", "both"))
    yield f"| | {' | '.join(columns)} |"
    yield "| --- |" + " ---: |" * 4 * len(measured)
    by_row = [{(row["what"], row["depth"]): row for row in each["rows"]} for each in measured.values()]
    for what, depth in max(by_row, key=len):  # a map of single KV groups has no rows of attention alone
        cells = [what if depth is None else f"{what} at {depth}"]
        for rows in by_row:
            cells += _cells(rows[what, depth]) if (what, depth) in rows else [""] * 4
        yield f"| {' | '.join(cells)} |"


def _cells(row: dict[str, Any]) -> list[str]:
    kernels, both = row["ratios"][KERNELS]["median"], row["ratios"]["SA"]["median"]
    numbers = (kernels, row["sharing"]["SA"]["median"], row["predicted"], both)
    return ["" if number is None else f"{number:.2f}" for number in numbers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--types", nargs="+", default=["q8_0"], help="of the weights: q8_0, Q4_K_M and others")
    parser.add_argument("--maps", nargs="+", choices=MAPS, default=list(MAPS))
    parser.add_argument("--depths", nargs="+", type=int, default=[0, 4096, 16384])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="1 takes CPU time, which other programs do not disturb")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--table", nargs="+", type=Path, metavar="JSON", help="print the table of these files")
    args = parser.parse_args()
    if args.table:
        shapes = {name: shape for file in args.table for name, shape in json.loads(file.read_text()).items()}
        print("\n".join(table(shapes)))
        return
    err, out = Console(stderr=True), Console(width=160)
    data = {}
    for name, type, kind in itertools.product(args.shapes, args.types, args.maps):
        dense = written(name, type, args.folder)
        sa, depths = exported(name, dense, kind), tuple(sorted(args.depths))
        with steps(err) as progress:
            measured = measure(BenchRequest(dense, sa, depths, rounds=args.rounds, threads=args.threads), progress)
        out.print(f"[bold]{name}, {type}, {kind}[/bold] {SHAPES[name]}", highlight=False)
        bench_report.show(measured, out)
        data[f"{name} {type} {kind}"] = as_dict(measured)
        if args.json:
            args.json.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
