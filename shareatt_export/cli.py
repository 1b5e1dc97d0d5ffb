"""The command line: options in, one call, a report out. The only place where errors become text and exit statuses."""

import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import click
from click_default_group import DefaultGroup
from gguf import GGMLQuantizationType
from rich.console import Console
from rich.progress import Progress

from . import __version__, bench, bench_plot, bench_rows, report, runtime
from .convert import OUTTYPES
from .errors import ShareattError
from .export import Request, export, planned
from .facts import read_facts
from .files import Advance, nothing
from .header import read_header
from .names import destination
from .progress import steps
from .verify import verify
from .wheel import build_wheel
from .wheel import version as wheel_version

FILE = click.Path(path_type=Path)
out = Console(width=None if sys.stdout.isatty() else 120)
err = Console(stderr=True, width=None if sys.stderr.isatty() else 120)

json_option = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Only results and errors.")
llama_cpp_option = click.option(
    "--llama-cpp", type=FILE, metavar="DIR", help="A llama.cpp checkout of your own instead of the pinned source."
)


class Depths(click.ParamType[tuple[int, ...]]):
    """Ascending numbers of tokens."""

    name = "N,N..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isascii() and part.isdigit() and len(part) < 8 for part in parts):
            self.fail(f"'{value}' is not a list of depths like 0,4096,16384", param, ctx)
        return tuple(sorted(set(map(int, parts))))


class CacheType(click.ParamType[GGMLQuantizationType]):
    name = "TYPE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> GGMLQuantizationType:
        if value not in bench.CACHE_TYPES:
            self.fail(f"'{value}' is none of {', '.join(bench.CACHE_TYPES)}", param, ctx)
        return GGMLQuantizationType[value.upper()]


tool_arguments = click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGUMENT...]")


@click.group(
    cls=cast(type[click.Group], DefaultGroup),  # it brings no types
    default="export",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="shareatt-export")
def cli() -> None:
    """Export language models with Shared Attention to GGUF, and run them in llama.cpp.

    In a span of layers the first computes its attention weights and the others reuse them:

        shareatt-export MODEL --spans 22-26 -o out.gguf
    """


@cli.command("export", short_help="Make an SA GGUF (the default command).")
@click.argument("model", type=FILE)
@click.option("--spans", required=True, help="A-B, S:F-G, S:F+G, a comma list of these, or every:K.")
@click.option("-o", "--output", type=FILE, help="The GGUF file to write, or a folder for it.")
@click.option(
    "--source",
    type=click.Choice(["first", "previous"]),
    default="first",
    show_default=True,
    help="Which layer a range A-B reuses: its first, or the one before it (as the paper's code counts).",
)
@click.option("--outtype", type=click.Choice(OUTTYPES, case_sensitive=False), default="auto", show_default=True,
              help="Weight type, when MODEL is a Hugging Face folder.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@json_option
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the converter says.")
@quiet_option
@llama_cpp_option
@click.option("--trust-remote-code", is_flag=True, help="Allow a Hugging Face folder that brings code of its own.")
def export_command(model: Path, output: Path | None, dry_run: bool, as_json: bool, quiet: bool, **options: Any) -> None:
    """Make an SA GGUF from MODEL, a Hugging Face folder or a dense GGUF file."""
    if output is None and not dry_run:
        raise click.UsageError("Missing option '-o' / '--output' (or use --dry-run).")
    request = Request(model=model, out=None if dry_run else output, **options)
    with ExitStack() as stack:
        with _busy(quiet, "reading the model" if model.is_file() else "converting the checkpoint"):
            plan = stack.enter_context(planned(request))
        if not as_json and not quiet:
            report.show_plan(plan, out if dry_run else err)
        data = report.plan_dict(plan) | {"model": str(model)}
        if request.out is not None:
            file = destination(plan, request.out)
            with _bar(quiet) as watch:
                done = export(plan, file, request.force, watch)
            data |= {"output": str(file), "source_sha256": done.source_sha256, "verified_bytes": done.n_bytes}
            if not as_json:
                click.echo(str(file))
    if as_json:
        _print_json(data)


@cli.command("inspect", short_help="Say what a GGUF is and what it needs.")
@click.argument("file", type=FILE)
@json_option
def inspect_command(file: Path, as_json: bool) -> None:
    """Say what a GGUF is, which layers share attention, and which runtime it needs."""
    header = read_header(file)
    facts = read_facts(header)
    if as_json:
        _print_json(report.inspect_dict(header, facts, runtime.status()))
    else:
        report.show_inspect(header, facts, runtime.status(), out)


@cli.command("verify", short_help="Hold an SA file against its dense GGUF.")
@click.argument("file", type=FILE)
@click.option("--against", type=FILE, required=True, metavar="DENSE", help="The dense GGUF it was made from.")
@json_option
@quiet_option
def verify_command(file: Path, against: Path, as_json: bool, quiet: bool) -> None:
    """Hold an SA file against its dense GGUF: map, inventory, offsets, every copied byte."""
    total = file.stat().st_size + against.stat().st_size if file.is_file() and against.is_file() else 0
    with _bar(quiet) as watch:
        done = verify(file, against, watch("verifying", total))
    if as_json:
        _print_json({"file": str(file), "ok": True, "tensors": done.n_tensors, "bytes": done.n_bytes})
    else:
        click.echo(f"{file}: {done.n_tensors} tensors, {done.n_bytes} bytes, as in {against}")


@cli.command("run", short_help="Generate text with a GGUF.")
@click.argument("file", type=FILE)
@click.option("-p", "--prompt", required=True)
@click.option("-n", "--n-predict", type=int, default=128, show_default=True, help="Tokens to generate.")
@tool_arguments
def run_command(file: Path, prompt: str, n_predict: int, arguments: tuple[str, ...]) -> None:
    """Generate text with FILE in the patched llama.cpp; what follows -- goes to llama-completion."""
    _exec("llama-completion", file, "-p", prompt, "-n", str(n_predict), "-no-cnv", *arguments)


@cli.command("serve", short_help="Serve a GGUF over HTTP.")
@click.argument("file", type=FILE)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=int, default=8080, show_default=True)
@tool_arguments
def serve_command(file: Path, host: str, port: int, arguments: tuple[str, ...]) -> None:
    """Serve FILE with the patched llama-server (OpenAI-compatible); what follows -- goes to it."""
    _exec("llama-server", file, "--host", host, "--port", str(port), *arguments)


@cli.command("bench", short_help="Measure an SA model against its dense model.")
@click.argument("dense", type=FILE)
@click.argument("sa", type=FILE)
@click.option("--depths", type=Depths(), default="0,4096", show_default=True, help="Tokens already in the context.")
@click.option("--prompt", type=click.IntRange(1), default=512, show_default=True, help="Tokens of a prefill.")
@click.option("--generate", type=click.IntRange(1), default=16, show_default=True, help="Tokens of a decode.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns that each setting takes.")
@click.option("--threads", type=click.IntRange(1), default=os.cpu_count() or 2, show_default=True)
@click.option("--ctk", "type_k", type=CacheType(), default="f16", show_default=True, help="Type of the K cache.")
@click.option("--ctv", "type_v", type=CacheType(), default="f16", show_default=True, help="Type of the V cache.")
@click.option("--p-bytes", type=click.IntRange(0), multiple=True,
              help="Also measure SA with so many bytes for attention weights (0: recompute); repeatable.")  # fmt: skip
@click.option("--plot", type=FILE, metavar="PNG", help="Draw the speedups over depth.")
@json_option
@quiet_option
def bench_command(plot: Path | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Measure SA against DENSE, the GGUF it was made from: speed and memory, beside what the arithmetic predicts.

    DENSE runs on the unpatched llama.cpp with flash attention on and off; ratios refer to the better of the two.
    On a machine that others use, '--threads 1' measures best: it takes the CPU time, not the wall time.
    """
    if plot is not None:
        bench_plot.require_matplotlib()
    with steps(err, quiet) as progress:
        measured = bench.measure(bench.Request(**options), progress)
    if plot is not None:
        bench_plot.plot(bench_rows.rows(measured), measured.request.sa.name, plot)
    if as_json:
        _print_json(bench_rows.as_dict(measured))
    else:
        report.show_bench(measured, out)


@cli.group("runtime")
def runtime_group() -> None:
    """The patched llama.cpp: build it, look at it."""


@runtime_group.command("build")
@click.option("--unpatched", is_flag=True, help="Build the library of the same source without the patch, to compare.")
@llama_cpp_option
@json_option
@quiet_option
def runtime_build(unpatched: bool, llama_cpp: Path | None, as_json: bool, quiet: bool) -> None:
    """Build the runtime; about 8 minutes on two cores the first time, seconds after that."""
    with steps(err, quiet) as progress:
        built = runtime.build(not unpatched, llama_cpp, progress)
    if as_json:
        _print_json(report.runtime_dict(built))
    else:
        click.echo(str(built.bin))


@runtime_group.command("wheel")
@click.option("-o", "--output", type=FILE, default=".", metavar="DIR", help="Where to put it.  [default: here]")
@json_option
@quiet_option
def runtime_wheel(output: Path, as_json: bool, quiet: bool) -> None:
    """Build llama-cpp-python with Shared Attention as a wheel for pip, for this machine's kind of processor."""
    with steps(err, quiet) as progress:
        made = build_wheel(output, progress)
    if as_json:
        _print_json({"wheel": str(made), "version": wheel_version()})
    else:
        click.echo(str(made))


@runtime_group.command("status")
@json_option
def runtime_status(as_json: bool) -> None:
    """Say whether the runtime of this version is built, and where."""
    if as_json:
        _print_json(report.runtime_dict(runtime.status()))
    else:
        report.show_runtime(runtime.status(), out)


@runtime_group.command("path")
def runtime_path() -> None:
    """Print the folder that holds llama-cli, llama-server and the other tools."""
    click.echo(str(runtime.require().bin))


def _print_json(data: dict[str, Any]) -> None:
    click.echo(json.dumps(data, indent=2))


def _exec(name: str, file: Path, *arguments: str) -> None:
    read_facts(read_header(file))  # a bad file gets our message, not the tool's log
    program = str(runtime.tool(name))
    os.execv(program, [program, "-m", str(file), *arguments])  # noqa: S606


def _busy(quiet: bool, what: str) -> AbstractContextManager[object]:
    return nullcontext() if quiet or not err.is_terminal else err.status(what)


@contextmanager
def _bar(quiet: bool) -> Iterator[Callable[[str, int], Advance]]:
    """A progress bar in bytes on stderr, on a terminal only."""
    with Progress(disable=quiet or not err.is_terminal, console=err, transient=True) as progress:

        def watch(what: str, n_bytes: int) -> Advance:
            if progress.disable:
                return nothing
            task = progress.add_task(what, total=n_bytes)
            return lambda n: progress.advance(task, n)

        yield watch


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
        click.echo(f"Error: {' '.join(str(error).split())}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
