"""`shareatt-export search`."""

from pathlib import Path

import click

from ..searching.request import SearchRequest
from .option_types import FILE, OutFolder
from .options import (
    budget_options,
    force_files_option,
    json_option,
    quiet_option,
    reach_option,
    text_option,
    threads_option,
    window_options,
)


@click.command("search", short_help="Find the spans that cost least.")
@click.argument("model", type=FILE)
@budget_options
@click.option("--align/--no-align", default=True, show_default=True,
              help="Put the heads of followers in the best order.")  # fmt: skip
@click.option("--refit/--no-refit", default=True, show_default=True, help="Refit the followers' output projections.")
@text_option("Text to measure with")
@click.option("-o", "--output", type=OutFolder(), metavar="DIR",
              help="Write search.json, pareto.png and the state of an interrupted search there.")  # fmt: skip
@window_options(n_ctx=256, least=2)
@reach_option
@click.option("--beam", type=click.IntRange(1), default=3, show_default=True,
              help="Number of maps that are followed up at each step.")  # fmt: skip
@threads_option
@force_files_option
@json_option
@quiet_option
def search_command(
    model: Path,
    followers: int | None,
    max_kl: float | None,
    kv_bytes: int | None,
    fast: bool,
    align: bool,
    refit: bool,
    text: tuple[Path, ...],
    output: Path | None,
    n_ctx: int,
    n_windows: int,
    reach: int,
    beam: int,
    n_threads: int,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Find the spans of MODEL (a dense GGUF or a Hugging Face folder) that cost least.

    The cost is the KL divergence to the dense model, on text that the followers were not fitted to.

    The search ends at one of --followers, --max-kl and --kv-bytes. It shows the best map for each number of followers,
    beside the late span of arXiv 2407.12866, blocks over the whole depth, a quantised K cache, and no attention in
    these layers.
    """
    from ..api import search
    from . import search_report
    from .output import err, out, print_json, report_folder
    from .progress_bar import steps

    request = SearchRequest(
        model=model,
        followers=followers,
        max_kl=max_kl,
        kv_bytes=kv_bytes,
        text=text,
        align=align,
        refit=refit,
        n_ctx=n_ctx,
        n_windows=n_windows,
        reach=reach,
        beam=beam,
        fast=fast,
        state=output / search_report.STATE if output else None,
        n_threads=n_threads,
    )
    with report_folder(output, search_report.FILES, force) as files:
        with steps(err, quiet) as step:
            found = search(request, progress=step)
        data = search_report.as_dict(found)
        if output is not None:
            search_report.write(found, data, output, force)
    if as_json:
        print_json(data)
    else:
        search_report.show(found, out)
        click.echo("".join(f"{path}\n" for path in files), nl=False)
