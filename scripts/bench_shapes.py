#!/usr/bin/env python3
"""Run `shareatt-export bench` on models of real shapes with random q8_0 weights: 16 layers, spans 8-15, f16 cache.

    python scripts/bench_shapes.py build/shapes --json build/shapes/measure.json

FOLDER keeps the models (about 1.1 GB each). The vocabulary is small (32000) and tied, so that the layers are measured
and not the output matrix. Both the default budget for attention weights and an unlimited one are measured. Shapes can
run at the same time, each with one thread: `--shapes GQA` in one terminal, `--shapes MHA` in another.

    python scripts/bench_shapes.py build/shapes --table GQA.json MHA.json    # the table of the docs, from --json files
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from shareatt_export.benchmark.measure import measure
from shareatt_export.benchmark.request import BenchRequest
from shareatt_export.benchmark.rows import as_dict
from shareatt_export.benchmark.settings import UNLIMITED
from shareatt_export.cli import bench_report
from shareatt_export.cli.progress_bar import steps
from shareatt_export.exporting.job import opened
from shareatt_export.exporting.pipeline import export
from shareatt_export.exporting.request import ExportRequest
from shareatt_export.model.synthetic import ModelShape, write_random

SHAPES = {
    "GQA": ModelShape(n_layer=16, n_embd=2048, n_head=32, n_head_kv=8, head_dim=64, n_ff=8192, n_vocab=32000),
    "MHA": ModelShape(n_layer=16, n_embd=2048, n_head=16, n_head_kv=16, head_dim=128, n_ff=5632, n_vocab=32000),
}
SPANS = "8-15"


def pair(name: str, folder: Path) -> tuple[Path, Path]:
    """Return the dense and the SA model of a shape; write them if they do not exist."""
    dense, sa = folder / f"{name}.gguf", folder / f"{name}-SA{SPANS}.gguf"
    if not sa.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_random(dense, SHAPES[name])
        with opened(ExportRequest(dense, SPANS, sa)) as job:
            export(job)
    return dense, sa


def table(shapes: dict[str, Any]) -> Iterator[str]:
    """Yield a Markdown table: SA against the better dense setting (default budget / unlimited), and the prediction."""
    yield "| | " + " | ".join(f"{name} | predicted" for name in shapes) + " |"
    yield "| --- |" + " --- | --- |" * len(shapes)
    for rows in zip(*(shape["rows"] for shape in shapes.values()), strict=True):
        what, depth = rows[0]["what"], rows[0]["depth"]
        cells = [what if depth is None else f"{what} at {depth}"]
        for row in rows:
            cells.append(" / ".join(f"{ratio['median']:.2f}" for ratio in row["ratios"].values()))
            if row["unit"] == "bytes":
                dense, *_, sa, _ = (f"{value / 2**20:,.0f}" for value in row["values"].values())
                cells[-1] += f" ({dense} -> {sa} MiB)"
            cells.append("" if row["predicted"] is None else f"{row['predicted']:.2f}")
        yield "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--depths", nargs="+", type=int, default=[0, 4096, 16384])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="1 takes CPU time, which other programs do not disturb")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--table", nargs="+", type=Path, metavar="JSON", help="print the README's table of these")
    args = parser.parse_args()
    if args.table:
        shapes = {name: shape for file in args.table for name, shape in json.loads(file.read_text()).items()}
        print("\n".join(table(shapes)))
        return
    err, out = Console(stderr=True), Console(width=160)
    data = {}
    for name in args.shapes:
        dense, sa = pair(name, args.folder)
        request = BenchRequest(
            dense,
            sa,
            depths=tuple(sorted(args.depths)),
            rounds=args.rounds,
            threads=args.threads,
            p_bytes=(UNLIMITED,),
        )
        with steps(err) as progress:
            measured = measure(request, progress)
        out.print(f"[bold]{name}[/bold] {SHAPES[name]}", highlight=False)
        bench_report.show(measured, out)
        data[name] = as_dict(measured)
        if args.json:
            args.json.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
