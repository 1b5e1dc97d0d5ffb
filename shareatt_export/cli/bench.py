"""`shareatt-export bench`."""

import os
from pathlib import Path

import click

from ..benchmark.request import BenchRequest
from .option_types import CACHE_TYPE, FILE, Depths
from .options import device_option, gpu_layers_option, json_option, quiet_option
from .report import check_page, force_page_option, page_option, write_page


@click.command("bench", short_help="Measure an SA model against its dense model.")
@click.argument("dense", type=FILE)
@click.argument("sa", type=FILE)
@click.option("--depths", type=Depths(), default="0,4096", show_default=True,
              help="Numbers of tokens that are in the context already.")  # fmt: skip
@click.option("--prompt", type=click.IntRange(1), default=512, show_default=True, help="Tokens of a prefill.")
@click.option("--generate", type=click.IntRange(1), default=16, show_default=True, help="Tokens of a decode.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns that each setting takes.")
@click.option("--threads", type=click.IntRange(1), default=os.cpu_count() or 2, show_default=True,
              help="Number of threads.")  # fmt: skip
@click.option("--ctk", "type_k", type=CACHE_TYPE, default="f16", show_default=True, help="Type of the K cache.")
@click.option("--ctv", "type_v", type=CACHE_TYPE, default="f16", show_default=True, help="Type of the V cache.")
@gpu_layers_option
@device_option
@click.option("--p-bytes", type=click.IntRange(0), multiple=True, metavar="N",
              help="Also measure SA with N bytes for attention weights (0: recompute them); repeatable.")  # fmt: skip
@click.option("--plot", type=FILE, metavar="PNG", help="Draw the speedups by depth.")
@page_option
@force_page_option
@json_option
@quiet_option
def bench_command(
    dense: Path,
    sa: Path,
    depths: tuple[int, ...],
    prompt: int,
    generate: int,
    rounds: int,
    threads: int,
    type_k: str,
    type_v: str,
    gpu_layers: int | None,
    device: str | None,
    p_bytes: tuple[int, ...],
    plot: Path | None,
    report: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure speed and memory of SA against DENSE, the GGUF that it was made from, beside what arithmetic predicts.

    DENSE runs on the unpatched llama.cpp with flash attention on and off, and on the patched one with the kernels that
    SA uses. So the table tells apart what the kernels gain, and what sharing gains.
    On a machine that others use, '--threads 1' measures best: it takes the CPU time, not the wall time.
    """
    from ..api import bench
    from . import bench_plot, bench_report
    from .output import err, out, print_json, require_matplotlib
    from .progress_bar import steps

    if plot is not None:
        require_matplotlib("--plot")
    check_page(report, (dense, sa), force)
    request = BenchRequest(
        dense, sa, depths, prompt, generate, rounds, threads, type_k, type_v, p_bytes, gpu_layers, device
    )
    with steps(err, quiet) as step:
        measured = bench(request, progress=step)
    if plot is not None:
        bench_plot.plot(measured, plot)
    data = bench_report.as_dict(measured)
    write_page(report, data, "bench", force)
    if as_json:
        print_json(data)
    else:
        bench_report.show(measured, out)
