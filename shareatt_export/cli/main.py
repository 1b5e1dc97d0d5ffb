"""The command line: its options, and the only place where errors become text and exit statuses.

What the commands do is in commands.py, imported when one is called: --help and the shell's completion must be quick.
"""

import io
import os
import signal
import sys
from pathlib import Path
from typing import Any, cast

import click
from click_default_group import DefaultGroup

from .._version import __version__
from ..errors import ShareattError, one_line
from ..formats.weight_types import CACHE_TYPES
from ..llamacpp.pin import patch_id, pin
from .option_types import Depths, OutType, SplitSize

FILE = click.Path(path_type=Path)
CACHE_TYPE = click.Choice(CACHE_TYPES)

json_option = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Only results and errors.")
source_option = click.option(
    "--source",
    type=click.Choice(["first", "previous"]),
    default="first",
    show_default=True,
    help="Which layer a range A-B reuses: its first, or the one before it (as the paper's code counts).",
)
llama_cpp_option = click.option(
    "--llama-cpp", type=FILE, metavar="DIR", help="A llama.cpp checkout of your own instead of the pinned source."
)


def budget_options(command: Any) -> Any:
    """Where a search ends."""
    for option in (
        click.option("--fast", is_flag=True, help="Do not measure maps on the way: add up the errors of pairs."),
        click.option("--kv-bytes", type=click.IntRange(1), help="Search: as few followers as make a token of the KV "
                     "cache (f16) take at most so many bytes."),
        click.option("--max-kl", type=click.FloatRange(0, min_open=True),
                     help="Search: as many followers as stay below this mean KL to MODEL, in nats per token."),
        click.option("--followers", type=click.IntRange(1), help="Search: so many followers."),
    ):  # fmt: skip
        command = option(command)
    return command


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"shareatt-export, version {__version__}")
        click.echo(f"llama.cpp {pin().llama_cpp_commit}, patch {patch_id()}, ABI {pin().abi}")
        ctx.exit()


tool_arguments = click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGUMENT...]")


@click.group(
    cls=cast(type[click.Group], DefaultGroup),  # it brings no types
    default="export",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version,
              help="Show the version, and which llama.cpp and patch it brings.")  # fmt: skip
def cli() -> None:
    """Export language models with Shared Attention to GGUF, and run them in llama.cpp.

    In a span of layers the first computes its attention weights and the others reuse them:

        shareatt-export MODEL --spans 22-26 -o out.gguf
    """


@cli.command("export", short_help="Make an SA GGUF (the default command).")
@click.argument("model")
@click.option("--spans", required=True,
              help="A-B, S:F-G, S:F+G, a comma list of these, every:K, or auto (a search, see below).")  # fmt: skip
@click.option("-o", "--output", type=FILE, help="The GGUF file to write, or a folder for it.")
@source_option
@click.option("--outtype", type=OutType(), default="auto", show_default=True,
              help="Weight type: auto (as it is), f16, q8_0, Q4_K_M and whatever llama-quantize knows.")  # fmt: skip
@click.option("--imatrix", type=FILE, metavar="FILE", help="Importance matrix of llama-imatrix, for --outtype.")
@click.option("--threads", type=click.IntRange(1), help="Threads for --outtype, --align, --refit.  [default: all]")
@click.option("--align", is_flag=True, help="Put the heads of followers in the order that suits their source best.")
@click.option("--refit", is_flag=True, help="Solve for followers' output projections anew, to come closest to MODEL.")
@click.option("--text", type=FILE, metavar="FILE",
              help="Text for --align, --refit and --spans auto.  [default: Python's documentation]")  # fmt: skip
@budget_options
@click.option("--split-max-size", type=SplitSize(), help="Write shards of at most N megabytes (M) or gigabytes (G).")
@click.option("--card/--no-card", default=None,
              help="Write README.md, a model card, beside the output.  [default: if -o is a folder]")  # fmt: skip
@click.option("--report", "report_file", type=FILE, metavar="JSON", help="Write what --json prints to a file.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit, when MODEL is on the hub.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@json_option
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the converter says.")
@quiet_option
@llama_cpp_option
@click.option("--allow-nonfinite", is_flag=True, help="Export weights that are NaN or infinite too.")
@click.option("--trust-remote-code", is_flag=True, help="Allow a Hugging Face folder that brings code of its own.")
def export_command(
    output: Path | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    card: bool | None,
    report_file: Path | None,
    followers: int | None,
    max_kl: float | None,
    kv_bytes: int | None,
    **options: Any,
) -> None:
    """Make an SA GGUF from MODEL: a Hugging Face folder, a GGUF file (of shards, the first) or a hub id, ORG/NAME.

    A GGUF that shares attention already gets the spans beside its own. '--spans auto' searches for them, as the search
    command does, until one of --followers, --max-kl and --kv-bytes is met.
    """
    if output is None and not dry_run:
        raise click.UsageError("Missing option '-o' / '--output' (or use --dry-run).")
    from ..exporting.pipeline import ExportRequest
    from ..searching.beam import Budget
    from .commands import run_export

    budget = Budget(followers, max_kl, kv_bytes)
    options["budget"] = None if budget == Budget() else budget
    run_export(ExportRequest(out=None if dry_run else output, **options), card, report_file, as_json, quiet)


@cli.command("inspect", short_help="Say what a GGUF is and what it needs.")
@click.argument("file", type=FILE)
@json_option
def inspect_command(file: Path, as_json: bool) -> None:
    """Say what a GGUF is, which layers share attention, and which runtime it needs."""
    from .commands import inspect

    inspect(file, as_json)


@cli.command("verify", short_help="Hold an SA file against its dense GGUF.")
@click.argument("file", type=FILE)
@click.option("--against", type=FILE, required=True, metavar="DENSE", help="The dense GGUF it was made from.")
@json_option
@quiet_option
def verify_command(file: Path, against: Path, as_json: bool, quiet: bool) -> None:
    """Hold an SA file against its dense GGUF: map, inventory, offsets, every copied byte."""
    from .commands import run_verify

    run_verify(file, against, as_json, quiet)


@cli.command("analyze", short_help="Show which layers attend alike, and what sharing would cost.")
@click.argument("model", type=FILE)
@click.option("--text", type=FILE, metavar="FILE", help="Text to measure with.  [default: Python's documentation]")
@click.option("-o", "--output", type=FILE, metavar="DIR", help="Write analysis.json and heatmaps there.")
@click.option("--ctx", "n_ctx", type=click.IntRange(8), default=256, show_default=True, help="Tokens of a window.")
@click.option("--windows", "n_windows", type=click.IntRange(1), default=16, show_default=True, help="At most so many.")
@click.option("--reach", type=click.IntRange(1), default=8, show_default=True,
              help="Layers from a source to its follower, at most.")  # fmt: skip
@click.option("--threads", "n_threads", type=click.IntRange(1), default=os.cpu_count() or 2, show_default=True)
@click.option("--force", is_flag=True, help="Overwrite the files in DIR.")
@json_option
@quiet_option
def analyze_command(**options: Any) -> None:
    """Show how alike the layers of MODEL (a dense GGUF or a Hugging Face folder) attend.

    And what it would cost each to share. The similarity of attention weights is that of arXiv 2407.12866. The errors
    say more: how much of a layer's attention output would be missing with the weights of another layer, beside how much
    without any attention.
    """
    from .commands import run_analyze

    run_analyze(**options)


@cli.command("search", short_help="Find the spans that cost least.")
@click.argument("model", type=FILE)
@budget_options
@click.option("--align/--no-align", default=True, show_default=True, help="With followers' heads in the best order.")
@click.option(
    "--refit/--no-refit", default=True, show_default=True, help="With followers' output projections refitted."
)
@click.option("--text", type=FILE, metavar="FILE", help="Text to measure with.  [default: Python's documentation]")
@click.option("-o", "--output", type=FILE, metavar="DIR",
              help="Write search.json and pareto.png there, and what it takes to go on if interrupted.")  # fmt: skip
@click.option("--ctx", "n_ctx", type=click.IntRange(8), default=256, show_default=True, help="Tokens of a window.")
@click.option("--windows", "n_windows", type=click.IntRange(2), default=16, show_default=True,
              help="At most so many to measure a map.")  # fmt: skip
@click.option("--reach", type=click.IntRange(1), default=8, show_default=True,
              help="Layers from a source to its follower, at most.")  # fmt: skip
@click.option("--beam", type=click.IntRange(1), default=3, show_default=True, help="Maps that are followed up.")
@click.option("--threads", "n_threads", type=click.IntRange(1), default=os.cpu_count() or 2, show_default=True)
@click.option("--force", is_flag=True, help="Overwrite the files in DIR.")
@json_option
@quiet_option
def search_command(**options: Any) -> None:
    """Find the spans of MODEL (a dense GGUF or a Hugging Face folder) that cost least.

    Cost is KL to the dense model, on text apart from what the followers are fitted to.

    Ends at one of --followers, --max-kl and --kv-bytes. Shows the best map for each number of followers, beside the
    late span of arXiv 2407.12866, blocks over the whole depth, a quantised K cache, and no attention in these layers.
    """
    from .commands import run_search

    run_search(**options)


@cli.command("eval", short_help="Measure what SA models lose in quality.")
@click.argument("dense", type=FILE)
@click.argument("others", type=FILE, nargs=-1, required=True, metavar="SA...")
@click.option("--text", type=FILE, metavar="FILE", help="Text to measure with.  [default: Python's documentation]")
@click.option("--ctx", "n_ctx", type=click.IntRange(8), default=512, show_default=True, help="Tokens of a window.")
@click.option("--windows", "n_windows", type=click.IntRange(1), default=16, show_default=True, help="At most so many.")
@click.option("--tasks", type=FILE, multiple=True, metavar="FILE",
              help="JSON lines of multiple choice or exact match to score as well; repeatable.")  # fmt: skip
@click.option("--positions", is_flag=True, help="Also by position in the window: does the loss grow with depth?")
@click.option("--plot", type=FILE, metavar="PNG", help="Draw the perplexity, relative to DENSE, over position.")
@click.option("--baselines/--no-baselines", default=True, show_default=True,
              help="Also DENSE with the best quantised K cache that takes no more bytes, for each SA.")  # fmt: skip
@click.option("--combined", is_flag=True, help="Also each SA with its own K cache as q8_0.")
@click.option("--threads", "n_threads", type=click.IntRange(1), default=os.cpu_count() or 2, show_default=True)
@json_option
@quiet_option
def eval_command(**options: Any) -> None:
    """Measure what SA models lose against DENSE, the GGUF or Hugging Face folder they were made from.

    Perplexity, KL, agreement, tasks. Also what the dense model loses with a quantised K cache, which saves memory too.
    """
    from .commands import run_eval

    run_eval(**options)


@cli.command("heal", short_help="Train a model to do with shared attention.")
@click.argument("model", type=FILE)
@click.option("--spans", help="As for the export.")
@click.option("--from", "begin", type=FILE, metavar="SA",
              help="Begin with spans and followers of an SA GGUF that --align or --refit made of MODEL.")  # fmt: skip
@click.option("-o", "--output", type=FILE, metavar="DIR", help="The Hugging Face folder to write.")
@source_option
@click.option("--text", "texts", type=FILE, metavar="FILE", multiple=True,
              help="Text to train with; repeatable.  [default: Python's documentation]")  # fmt: skip
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Train so long.  [default: 15, or --steps]")
@click.option("--steps", type=click.IntRange(1), help="Train so many steps, at most.")
@click.option("--method", type=click.Choice(["full", "lora"]), default="full", show_default=True,
              help="Train matrices, or low-rank differences, which take less memory.")  # fmt: skip
@click.option("--rank", type=click.IntRange(1), default=16, show_default=True, help="Of --method lora.")
@click.option("--train-mlp", is_flag=True, help="Also the MLPs of the spans' layers.")
@click.option("--lr", "learning_rate", type=click.FloatRange(0, min_open=True), help="Learning rate.  [default: 0.003]")
@click.option("--ctx", "n_ctx", type=click.IntRange(8), default=512, show_default=True,
              help="Tokens of a window. What the model is used with: beyond it less is healed.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), default=2, show_default=True, help="Windows of a step.")
@click.option("--dtype", type=click.Choice(["f32", "bf16"]), default="bf16", show_default=True,
              help="What the model computes in; what is trained is in f32 at any rate.")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--checkpointing", is_flag=True, help="Compute layers again for the backward pass: slower, less memory.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of the same settings.")
@click.option("--dry-run", is_flag=True, help="Print what would be trained, and write nothing.")
@json_option
@click.option("--force", is_flag=True, help="Replace DIR, if it is a healed model, or an interrupted run.")
@quiet_option
def heal_command(output: Path | None, dry_run: bool, **options: Any) -> None:
    """Train MODEL, a Hugging Face folder, to do with shared attention in the spans what it did without.

    Its unchanged weights are the teacher. Trained are V and output projections of the layers that reuse attention
    weights, and Q and K of the layer that computes them. DIR then exports with the same spans.
    """
    if output is None and not dry_run:
        raise click.UsageError("Missing option '-o' / '--output' (or use --dry-run).")
    from .commands import run_heal

    run_heal(None if dry_run else output, **options)


@cli.command("run", short_help="Generate text with a GGUF.")
@click.argument("file", type=FILE)
@click.option("-p", "--prompt", required=True)
@click.option("-n", "--n-predict", type=int, default=128, show_default=True, help="Tokens to generate.")
@tool_arguments
def run_command(file: Path, prompt: str, n_predict: int, arguments: tuple[str, ...]) -> None:
    """Generate text with FILE in the patched llama.cpp; what follows -- goes to llama-completion."""
    from .commands import become

    become("llama-completion", file, "-p", prompt, "-n", str(n_predict), "-no-cnv", *arguments)


@cli.command("serve", short_help="Serve a GGUF over HTTP.")
@click.argument("file", type=FILE)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=int, default=8080, show_default=True)
@tool_arguments
def serve_command(file: Path, host: str, port: int, arguments: tuple[str, ...]) -> None:
    """Serve FILE with the patched llama-server (OpenAI-compatible); what follows -- goes to it."""
    from .commands import become

    become("llama-server", file, "--host", host, "--port", str(port), *arguments)


@cli.command("bench", short_help="Measure an SA model against its dense model.")
@click.argument("dense", type=FILE)
@click.argument("sa", type=FILE)
@click.option("--depths", type=Depths(), default="0,4096", show_default=True, help="Tokens already in the context.")
@click.option("--prompt", type=click.IntRange(1), default=512, show_default=True, help="Tokens of a prefill.")
@click.option("--generate", type=click.IntRange(1), default=16, show_default=True, help="Tokens of a decode.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns that each setting takes.")
@click.option("--threads", type=click.IntRange(1), default=os.cpu_count() or 2, show_default=True)
@click.option(
    "--ctk", "type_k", type=click.Choice(CACHE_TYPES), default="f16", show_default=True, help="Type of the K cache."
)
@click.option(
    "--ctv", "type_v", type=click.Choice(CACHE_TYPES), default="f16", show_default=True, help="Type of the V cache."
)
@click.option("--p-bytes", type=click.IntRange(0), multiple=True,
              help="Also measure SA with so many bytes for attention weights (0: recompute); repeatable.")  # fmt: skip
@click.option("--plot", type=FILE, metavar="PNG", help="Draw the speedups over depth.")
@json_option
@quiet_option
def bench_command(**options: Any) -> None:
    """Measure SA against DENSE, the GGUF it was made from: speed and memory, beside what the arithmetic predicts.

    DENSE runs on the unpatched llama.cpp with flash attention on and off; ratios refer to the better of the two.
    On a machine that others use, '--threads 1' measures best: it takes the CPU time, not the wall time.
    """
    from .commands import run_bench

    run_bench(**options)


@cli.group("runtime")
def runtime_group() -> None:
    """The patched llama.cpp: build it, look at it."""


@runtime_group.command("build")
@click.option("--unpatched", is_flag=True, help="Build the library of the same source without the patch, to compare.")
@llama_cpp_option
@json_option
@quiet_option
def runtime_build(**options: Any) -> None:
    """Build the runtime; about 8 minutes on two cores the first time, seconds after that."""
    from . import commands

    commands.runtime_build(**options)


@runtime_group.command("wheel")
@click.option("-o", "--output", type=FILE, default=".", metavar="DIR", help="Where to put it.  [default: here]")
@json_option
@quiet_option
def runtime_wheel(**options: Any) -> None:
    """Build llama-cpp-python with Shared Attention as a wheel for pip, for this machine's kind of processor."""
    from . import commands

    commands.runtime_wheel(**options)


@runtime_group.command("status")
@json_option
def runtime_status(as_json: bool) -> None:
    """Say whether the runtime of this version is built, and where."""
    from . import commands

    commands.runtime_status(as_json)


@runtime_group.command("path")
def runtime_path() -> None:
    """Print the folder that holds llama-cli, llama-server and the other tools."""
    from . import commands

    commands.runtime_path()


def main() -> None:
    """Exit statuses: 0 done, 1 an error of ShareattError's family, 2 usage, 130 interrupted, 143 terminated."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(cli(standalone_mode=False))
    except click.UsageError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ShareattError, OSError) as error:
        click.echo(f"Error: {one_line(str(error))}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
