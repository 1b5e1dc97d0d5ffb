"""`shareatt-export analyze`."""

from pathlib import Path

import click

from ..evaluation.request import AnalyzeRequest
from .option_types import FILE, OutFolder
from .options import (
    force_files_option,
    json_option,
    quiet_option,
    reach_option,
    text_option,
    threads_option,
    window_options,
)


@click.command("analyze", short_help="Show which layers attend alike, and what sharing would cost.")
@click.argument("model", type=FILE)
@text_option("Text to measure with")
@click.option(
    "-o", "--output", type=OutFolder(), metavar="DIR", help="Write analysis.json, heatmaps and report.html there."
)
@window_options(n_ctx=256)
@reach_option
@threads_option
@force_files_option
@json_option
@quiet_option
def analyze_command(
    model: Path,
    text: tuple[Path, ...],
    output: Path | None,
    n_ctx: int,
    n_windows: int,
    reach: int,
    n_threads: int,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show how alike the layers of MODEL (a dense GGUF or a Hugging Face folder) attend, and what sharing would cost.

    The similarity of attention weights is that of arXiv 2407.12866. The errors say more: they measure how far a layer's
    attention output moves with the attention weights of another layer, beside how far it moves without any attention.
    """
    from ..api import analyze
    from . import analyze_report
    from .output import err, out, print_json, report_folder
    from .progress_bar import steps

    request = AnalyzeRequest(model, text, n_ctx, n_windows, reach, n_threads)
    with report_folder(output, analyze_report.FILES, force) as files:
        with steps(err, quiet) as step:
            analysis = analyze(request, progress=step)
        data = analyze_report.as_dict(analysis)
        if output is not None:
            analyze_report.write(analysis, data, output, force)
    if as_json:
        print_json(data)
    else:
        analyze_report.show(analysis, out)
        click.echo("".join(f"{path}\n" for path in files), nl=False)
