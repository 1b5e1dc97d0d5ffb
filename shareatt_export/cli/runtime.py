"""`shareatt-export runtime`: build the patched llama.cpp, and say where it is."""

from pathlib import Path

import click

from .option_types import FILE
from .options import json_option, llama_cpp_option, quiet_option

BACKENDS = ("cpu", "cuda", "vulkan", "metal", "hip", "sycl")


@click.group("runtime")
def runtime_group() -> None:
    """Build the patched llama.cpp, and say where it is."""


@runtime_group.command("build")
@click.option("--unpatched", is_flag=True, help="Build the library of the same source without the patch, to compare.")
@click.option("--backend", "backends", type=click.Choice(BACKENDS), multiple=True,
              help="Build for a kind of GPU; repeatable. 'cpu' means none.  [default: as last time]")  # fmt: skip
@click.option("--cmake-option", "cmake", multiple=True, metavar="NAME=VALUE",
              help="Give CMake an option; repeatable.  [default: as last time]")  # fmt: skip
@llama_cpp_option
@json_option
@quiet_option
def build_command(
    unpatched: bool,
    backends: tuple[str, ...],
    cmake: tuple[str, ...],
    llama_cpp: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Build the runtime. This takes about 8 minutes on two cores the first time, and seconds after that.

    The choice of --backend and --cmake-option is kept, also for later versions. Each call that gives one of them
    replaces the whole choice.
    """
    from ..llamacpp.build import build
    from ..llamacpp.build_options import cmake_options
    from ..llamacpp.runtime import status
    from . import inspect_report
    from .output import err, print_json
    from .progress_bar import steps

    options = cmake_options(backends, cmake) if backends or cmake else None
    if unpatched and options is not None:
        raise click.UsageError("--unpatched takes the backends and options of the runtime; give none")
    with steps(err, quiet) as step:
        built = build(not unpatched, llama_cpp, step, options)
    if as_json:
        print_json(inspect_report.runtime_dict(built))
    else:
        click.echo(str(built.bin))
    if not unpatched and status().origin == "installed":
        err.print("The installed runtime stays in use until 'pip uninstall shareatt-export-runtime'.")


@runtime_group.command("wheel")
@click.option("-o", "--output", type=FILE, default=".", metavar="DIR", help="Folder for the wheel.  [default: here]")
@json_option
@quiet_option
def wheel_command(output: Path, as_json: bool, quiet: bool) -> None:
    """Build llama-cpp-python with Shared Attention as a wheel for pip, for this machine's kind of processor."""
    from ..llamacpp import wheel
    from .output import err, print_json
    from .progress_bar import steps

    with steps(err, quiet) as step:
        made = wheel.build_wheel(output, step)
    if as_json:
        print_json({"wheel": str(made), "version": wheel.version()})
    else:
        click.echo(str(made))


@runtime_group.command("status")
@json_option
def status_command(as_json: bool) -> None:
    """Say which runtime is in use, an installed one or a built one, where it is, and which GPUs it sees."""
    from ..llamacpp.devices import devices
    from ..llamacpp.runtime import status
    from . import inspect_report
    from .output import out, print_json

    runtime = status()
    found = devices() if runtime.ready else ()
    if as_json:
        print_json(inspect_report.runtime_dict(runtime) | {"devices": [vars(device) for device in found]})
    else:
        inspect_report.show_runtime(runtime, found, out)


@runtime_group.command("path")
def path_command() -> None:
    """Print the folder that contains llama-cli, llama-server and the other programs."""
    from ..llamacpp.runtime import require

    click.echo(str(require().bin))


@runtime_group.command("clean")
@click.option("--all", "everything", is_flag=True, help="Remove what this version uses, too.")
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
@json_option
def clean_command(everything: bool, dry_run: bool, as_json: bool) -> None:
    """Remove the builds and sources of earlier versions, and those of the tests, from the cache."""
    from ..llamacpp.clean import clean
    from .output import out, print_json
    from .tables import size, table

    entries = clean(everything, dry_run)
    if as_json:
        print_json({"dry_run": dry_run, "entries": [vars(each) | {"path": str(each.path)} for each in entries]})
        return
    done = "would be removed" if dry_run else "removed"
    words = [f"kept: {each.kept}" if each.kept else done for each in entries]
    out.print(table([(text, size(each.n_bytes), str(each.path)) for text, each in zip(words, entries, strict=True)]))
    click.echo(f"{size(sum(each.n_bytes for each in entries if each.kept is None))} {done}")
