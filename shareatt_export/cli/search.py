"""`shareatt-export search`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click
from click.core import ParameterSource

from ..searching.request import GroupSearchRequest, SearchRequest
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

OF_LAYERS = ("followers", "align", "beam")  # options of a search over whole layers
OF_GROUPS = ("speedup", "decode_at", "drop_only")  # of a search over KV groups


@click.command("search", short_help="Find what costs least to share or to drop.")
@click.argument("model", type=FILE)
@click.option("--unit", type=click.Choice(["layer", "group"]),
              help="Share whole layers, or share and drop KV groups.  [default: group; layer with an option for it, or "
              "where the architecture shares whole layers only]")  # fmt: skip
@budget_options
@click.option("--speedup", type=click.FloatRange(1, min_open=True), metavar="X",
              help="Search: stop when decoding a token is X times as fast, by the bytes that are read.")  # fmt: skip
@click.option("--decode-at", type=click.IntRange(0), default=16384, show_default=True, metavar="N",
              help="Tokens in the context for --speedup.")  # fmt: skip
@click.option(
    "--drop-only",
    is_flag=True,
    help="Let no KV group follow another: 'stock' writes such a llama or qwen2 for unpatched llama.cpp.",
)
@click.option("--align/--no-align", default=True, show_default=True,
              help="Put the heads of followers in the best order.")  # fmt: skip
@click.option(
    "--refit/--no-refit", default=True, show_default=True, help="Refit the output projections of changed layers."
)
@text_option("Text to measure with")
@click.option("-o", "--output", type=OutFolder(), metavar="DIR",
              help="Write search.json, pareto.png, report.html and the state of the search there.")  # fmt: skip
@window_options(n_ctx=256, least=2)
@reach_option
@click.option("--beam", type=click.IntRange(1), default=3, show_default=True,
              help="Number of maps that are followed up at each step.")  # fmt: skip
@threads_option
@force_files_option
@json_option
@quiet_option
@click.pass_context
def search_command(
    context: click.Context,
    model: Path,
    unit: str | None,
    save: float | None,
    followers: int | None,
    max_kl: float | None,
    kv_bytes: int | None,
    fast: bool,
    speedup: float | None,
    decode_at: int,
    drop_only: bool,
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
    """Find what MODEL (a dense GGUF or a Hugging Face folder) can share at the least cost.

    The cost is the KL divergence to the dense model, on text that took no part in the search.

    With --unit layer, whole layers reuse the attention weights of others. The search ends at one of --followers,
    --max-kl, --kv-bytes and --save. It shows the best map for each number of followers, beside the late span of arXiv
    2407.12866, blocks over the whole depth, a quantised K cache, and no attention in these layers.

    With --unit group, each KV group (a KV head and its query heads) computes its attention weights, follows heads of an
    earlier layer, or is dropped. The search ends at one of --save, --kv-bytes, --max-kl and --speedup. It shows the
    best map, beside those that only share or only drop, and quantised K caches.
    """
    request: SearchRequest | GroupSearchRequest
    state = output / "search-state" if output else None
    given = [name for name in (*OF_LAYERS, *OF_GROUPS)
             if context.get_parameter_source(name) == ParameterSource.COMMANDLINE]  # fmt: skip
    unit = unit or _default_unit(model, given)
    for name in given:
        if (name in OF_LAYERS) != (unit == "layer"):
            other = "layer" if name in OF_LAYERS else "group"
            raise click.UsageError(f"--{name.replace('_', '-')} belongs to --unit {other}.")
    if unit == "group":
        request = GroupSearchRequest(
            model=model,
            kv_bytes=kv_bytes,
            save=save,
            max_kl=max_kl,
            speedup=speedup,
            decode_at=decode_at,
            drop_only=drop_only,
            text=text,
            refit=refit,
            n_ctx=n_ctx,
            n_windows=n_windows,
            reach=reach,
            fast=fast,
            state=state,
            n_threads=n_threads,
        )
    else:
        request = SearchRequest(
            model=model,
            followers=followers,
            max_kl=max_kl,
            kv_bytes=kv_bytes,
            save=save,
            text=text,
            align=align,
            refit=refit,
            n_ctx=n_ctx,
            n_windows=n_windows,
            reach=reach,
            beam=beam,
            fast=fast,
            state=state,
            n_threads=n_threads,
        )
    _run(request, output, force, as_json, quiet)


def _default_unit(model: Path, given: Sequence[str]) -> str:
    if any(name in OF_LAYERS for name in given):
        return "layer"
    if model.is_dir():
        return "group"
    from ..formats.shards import read_model
    from ..model.facts import require_exportable

    return "layer" if require_exportable(read_model(model)).layers_only else "group"


def _run(
    request: SearchRequest | GroupSearchRequest, output: Path | None, force: bool, as_json: bool, quiet: bool
) -> None:
    from ..api import search, search_groups
    from . import group_report, search_report
    from .output import err, out, print_json, report_folder
    from .progress_bar import steps

    with report_folder(output, search_report.FILES, force) as files:
        with steps(err, quiet) as step:
            if isinstance(request, GroupSearchRequest):
                groups = search_groups(request, progress=step)
                data, show = group_report.as_dict(groups, output), partial(group_report.show, groups, output)
                plot = partial(group_report.plot, groups)
            else:
                found = search(request, progress=step)
                data, show = search_report.as_dict(found), partial(search_report.show, found)
                plot = partial(search_report.plot, found)
        if output is not None:
            search_report.write(data, plot, output, force)
    if as_json:
        print_json(data)
    else:
        show(out)
        click.echo("".join(f"{path}\n" for path in files), nl=False)
