"""`shareatt-export runtime`: build the patched llama.cpp, and say where it is."""

from pathlib import Path

import click

from .option_types import FILE
from .options import json_option, llama_cpp_option, quiet_option


@click.group("runtime")
def runtime_group() -> None:
    """Build the patched llama.cpp, and say where it is."""


@runtime_group.command("build")
@click.option("--unpatched", is_flag=True, help="Build the library of the same source without the patch, to compare.")
@llama_cpp_option
@json_option
@quiet_option
def build_command(unpatched: bool, llama_cpp: Path | None, as_json: bool, quiet: bool) -> None:
    """Build the runtime. This takes about 8 minutes on two cores the first time, and seconds after that."""
    from ..llamacpp.build import build
    from . import inspect_report
    from .output import err, print_json
    from .progress_bar import steps

    with steps(err, quiet) as step:
        built = build(not unpatched, llama_cpp, step)
    if as_json:
        print_json(inspect_report.runtime_dict(built))
    else:
        click.echo(str(built.bin))


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
    """Say whether the runtime of this version is built, and where."""
    from ..llamacpp.runtime import status
    from . import inspect_report
    from .output import out, print_json

    if as_json:
        print_json(inspect_report.runtime_dict(status()))
    else:
        inspect_report.show_runtime(status(), out)


@runtime_group.command("path")
def path_command() -> None:
    """Print the folder that contains llama-cli, llama-server and the other programs."""
    from ..llamacpp.runtime import require

    click.echo(str(require().bin))
