"""`shareatt-export export`, the default command."""

import json
from pathlib import Path

import click

from ..exporting.request import ExportRequest
from ..model.spans import SourceMode
from .option_types import FILE, OutPath, OutType, SplitSize
from .options import budget_options, json_option, llama_cpp_option, quiet_option, source_option, text_option


@click.command("export", short_help="Make an SA GGUF (the default command).")
@click.argument("model")
@click.option("--spans",
              help="A-B, S:F-G, S:F+G, a comma-separated list of these, every:K, or auto (see below).")  # fmt: skip
@click.option("--drop", metavar="LIST",
              help="Layers and KV groups without attention: 24,27.0-1 is layer 24 and two groups of 27.")  # fmt: skip
@click.option("--map", "map_file", type=FILE, metavar="JSON", help="An attention map that a search wrote.")
@click.option("-o", "--output", type=OutPath(), help="The GGUF file to write, or a folder for it (NAME/ makes one).")
@source_option
@click.option("--outtype", type=OutType(), default="auto", show_default=True,
              help="Weight type: auto (as it is), f16, q8_0, Q4_K_M or another one of llama-quantize.")  # fmt: skip
@click.option("--imatrix", type=FILE, metavar="FILE", help="Importance matrix of llama-imatrix, for --outtype.")
@click.option("--threads", type=click.IntRange(1), help="Threads for --outtype, --align, --refit.  [default: all]")
@click.option("--align", is_flag=True, help="Put the heads of followers in the order that fits their source best.")
@click.option(
    "--refit", is_flag=True, help="Solve for output projections of changed layers that come closest to MODEL."
)
@text_option("Text for --align, --refit and --spans auto")
@budget_options
@click.option("--split-max-size", type=SplitSize(), help="Write shards of at most N megabytes (M) or gigabytes (G).")
@click.option("--card/--no-card", default=None,
              help="Write README.md, a model card, beside the output.  [default: if -o is a folder]")  # fmt: skip
@click.option("--report", "report_file", type=FILE, metavar="JSON", help="Write the output of --json to a file.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit, if MODEL is on the hub.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@json_option
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option("-v", "--verbose", is_flag=True, help="Show the output of the converter.")
@quiet_option
@llama_cpp_option
@click.option("--allow-nonfinite", is_flag=True, help="Export weights that are NaN or infinite, too.")
@click.option("--trust-remote-code", is_flag=True, help="Accept a Hugging Face folder that contains its own code.")
def export_command(
    model: str,
    spans: str | None,
    drop: str | None,
    map_file: Path | None,
    output: str | None,
    source: SourceMode,
    outtype: str,
    imatrix: Path | None,
    threads: int | None,
    align: bool,
    refit: bool,
    text: tuple[Path, ...],
    followers: int | None,
    max_kl: float | None,
    kv_bytes: int | None,
    save: float | None,
    fast: bool,
    split_max_size: int | None,
    card: bool | None,
    report_file: Path | None,
    revision: str | None,
    dry_run: bool,
    as_json: bool,
    force: bool,
    verbose: bool,
    quiet: bool,
    llama_cpp: Path | None,
    allow_nonfinite: bool,
    trust_remote_code: bool,
) -> None:
    """Make an SA GGUF from MODEL: a Hugging Face folder, a GGUF file (of shards, the first one) or a hub id, ORG/NAME.

    KV groups are written LAYER.GROUP: '--spans 6.0:7.1+8.0' lets two groups follow group 0 of layer 6. A GGUF that
    shares attention already keeps its spans and gets these as well.

    '--spans auto' searches for a map, as the search command does, until one of --save, --kv-bytes, --max-kl and
    --followers is met: over whole layers with --followers or --align, else over KV groups.
    """
    if spans is None and drop is None and map_file is None:
        raise click.UsageError("Missing option '--spans' (or '--drop' or '--map').")
    if output is None and not dry_run:
        raise click.UsageError("Missing option '-o' / '--output' (or use --dry-run).")
    request = ExportRequest(
        model=model,
        spans=spans,
        drop=drop,
        map=map_file,
        out=None if dry_run else output,
        source=source,
        outtype=outtype,
        imatrix=imatrix,
        threads=threads,
        split_max_size=split_max_size,
        align=align,
        refit=refit,
        text=text,
        followers=followers,
        max_kl=max_kl,
        kv_bytes=kv_bytes,
        save=save,
        fast=fast,
        force=force,
        llama_cpp=llama_cpp,
        trust_remote_code=trust_remote_code,
        revision=revision,
        verbose=verbose,
        allow_nonfinite=allow_nonfinite,
    )
    _run(request, card, report_file, as_json, quiet)


def _run(request: ExportRequest, card: bool | None, report_file: Path | None, as_json: bool, quiet: bool) -> None:
    from ..exporting.job import opened
    from ..exporting.pipeline import export
    from ..system.staging import check_output, write_text
    from . import export_report
    from .model_card import model_card
    from .output import err, out, print_json
    from .progress_bar import steps

    card_file = _card_file(request, card)
    if card_file and card_file.parent.is_dir():  # else its folder is still to be made
        check_output(card_file, [], request.force)
    if report_file:
        check_output(report_file, [], request.force)
    with steps(err, quiet) as step, opened(request, step) as job:
        data = export_report.plan_dict(job)
        if not as_json and not quiet:
            export_report.show_plan(job, err if request.out else out)
        if request.out:
            done = export(job)
            if done.followers and not as_json and not quiet:
                export_report.show_followers(done, err)
            data |= export_report.exported_dict(done, hashed=as_json or bool(card_file) or bool(report_file))
            if card_file:
                write_text(card_file, model_card(done, data), request.force)
    if report_file:
        write_text(report_file, json.dumps(data, indent=2) + "\n", request.force)
    if as_json:
        print_json(data)
    elif request.out:
        click.echo("\n".join(map(str, done.files)))


def _card_file(request: ExportRequest, card: bool | None) -> Path | None:
    folder = request.out_folder
    if request.out_path is None or not (card or (card is None and folder is not None)):
        return None
    return (folder or request.out_path.parent) / "README.md"
