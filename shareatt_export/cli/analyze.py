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
@click.argument("models", type=FILE, nargs=-1, required=True, metavar="MODEL...")
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
    models: tuple[Path, ...],
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

    Several MODELs are checkpoints of one model, in the order of its training. Then it shows how alike neighbouring
    layers attend in each.

    The similarity of attention weights is that of arXiv 2407.12866. The errors say more: they measure how far a layer's
    attention output moves with the attention weights of another layer, beside how far it moves without any attention.
    """
    from ..api import analyze
    from ..evaluation.analyze import check_checkpoint
    from . import analyze_report, training_report
    from .output import err, out, print_json, report_folder
    from .progress_bar import steps

    requests = [AnalyzeRequest(model, text, n_ctx, n_windows, reach, n_threads) for model in models]
    names = analyze_report.FILES if len(models) == 1 else training_report.files(len(models))
    with report_folder(output, names, force) as files:
        with steps(err, quiet) as step:
            analyses = []
            for request in requests:
                analyses.append(analyze(request, progress=step))
                check_checkpoint(analyses[-1], analyses[0])
        data = [analyze_report.as_dict(each) for each in analyses]
        if output is not None and len(models) == 1:
            analyze_report.write(analyses[0], data[0], output, force)
        elif output is not None:
            training_report.write(analyses, data, output, force)
    if as_json:
        print_json(data[0] if len(models) == 1 else {"analyses": data})
        return
    if len(models) == 1:
        analyze_report.show(analyses[0], out)
    else:
        training_report.show(analyses, out)
    click.echo("".join(f"{path}\n" for path in files), nl=False)
