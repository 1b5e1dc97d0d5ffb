"""`shareatt-export eval`."""

from pathlib import Path

import click

from ..evaluation.request import EvaluateRequest
from .option_types import FILE
from .options import (
    device_option,
    gpu_layers_option,
    json_option,
    quiet_option,
    text_option,
    threads_option,
    window_options,
)
from .report import check_page, force_page_option, page_option, write_page


@click.command("eval", short_help="Measure what SA models lose in quality.")
@click.argument("dense", type=FILE)
@click.argument("others", type=FILE, nargs=-1, required=True, metavar="SA...")
@text_option("Text to measure with")
@window_options(n_ctx=512)
@click.option("--tasks", type=FILE, multiple=True, metavar="FILE",
              help="A file of JSON lines, multiple choice or exact match, to answer as well; repeatable.")  # fmt: skip
@click.option("--positions", is_flag=True, help="Show the losses by position in the window, too.")
@click.option("--plot", type=FILE, metavar="PNG", help="Draw the perplexity, relative to DENSE, by position.")
@click.option("--card", is_flag=True, help="Write what was measured into README.md, the model card beside each SA.")
@click.option("--baselines/--no-baselines", default=True, show_default=True,
              help="For each SA, also evaluate DENSE with the best quantised K cache of no more bytes.")  # fmt: skip
@click.option("--weights/--no-weights", default=True, show_default=True,
              help="With the baselines, also DENSE as Q4_K_M and Q3_K_M, if its own weights are better.")  # fmt: skip
@click.option("--drop", is_flag=True, help="For each SA, also DENSE without attention in the layers that share.")
@click.option("--combined", is_flag=True, help="Also evaluate each SA with its own K cache as q8_0.")
@gpu_layers_option
@device_option
@threads_option
@page_option
@force_page_option
@json_option
@quiet_option
def eval_command(
    dense: Path,
    others: tuple[Path, ...],
    text: tuple[Path, ...],
    n_ctx: int,
    n_windows: int,
    tasks: tuple[Path, ...],
    positions: bool,
    plot: Path | None,
    card: bool,
    baselines: bool,
    weights: bool,
    drop: bool,
    combined: bool,
    gpu_layers: int | None,
    device: str | None,
    n_threads: int,
    report: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure what SA models lose against DENSE, the GGUF or Hugging Face folder that they were made from.

    Perplexity, KL divergence, agreement and tasks, also for the dense model with a quantised K cache and with quantised
    weights, which save memory, too.
    """
    from ..api import evaluate
    from . import evaluate_plot, evaluate_report, quality_card
    from .output import err, out, print_json, require_matplotlib
    from .progress_bar import steps
    from .tables import plain

    if plot is not None:
        require_matplotlib("--plot")
    check_page(report, (dense, *others), force)
    cards = quality_card.cards_of(others) if card else {}  # before minutes of measurement
    request = EvaluateRequest(
        dense,
        others,
        text,
        n_ctx,
        n_windows,
        baselines=baselines,
        weights=weights,
        drop=drop,
        combined=combined,
        tasks=tasks,
        n_threads=n_threads,
        gpu_layers=gpu_layers,
        device=device,
    )
    with steps(err, quiet) as step:
        done = evaluate(request, progress=step)
    if plot is not None:
        evaluate_plot.plot(done, plot)
    data = evaluate_report.as_dict(done)
    write_page(report, data, "eval", force)
    if as_json:
        print_json(data)
    else:
        evaluate_report.show(done, positions, out)
    for path in quality_card.write_cards(done, cards):
        if not quiet:
            err.print(f"wrote the quality into {plain(str(path))}", highlight=False)
