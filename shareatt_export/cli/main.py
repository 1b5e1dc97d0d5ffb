"""The command line: the group of commands, and the only place where errors become text and exit statuses.

Each command has a module of its own, which imports what it runs only when it is called: --help and the shell's
completion must be quick.
"""

import io
import os
import signal
import sys
from typing import cast

import click
from click_default_group import DefaultGroup

from .._version import __version__
from ..errors import ShareattError, one_line
from ..llamacpp.pin import patch_id, pin
from .analyze import analyze_command
from .bench import bench_command
from .doctor import doctor_command
from .evaluate import eval_command
from .export import export_command
from .harness import lm_eval_command
from .heal import heal_command
from .inspect import inspect_command
from .report import report_command
from .run import run_command, serve_command
from .runtime import runtime_group
from .search import search_command
from .stock import stock_command
from .verify import verify_command


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"shareatt-export, version {__version__}")
        click.echo(f"llama.cpp {pin().llama_cpp_commit}, patch {patch_id()}, ABI {pin().abi}")
        ctx.exit()


@click.group(
    cls=cast(type[click.Group], DefaultGroup),  # it brings no types
    default="export",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version,
              help="Show the version, and the llama.cpp and patch that belong to it.")  # fmt: skip
def cli() -> None:
    """Export language models with Shared Attention to GGUF, and run them in llama.cpp.

    In a span of layers the first layer computes its attention weights, and the other layers reuse them:

        shareatt-export MODEL --spans 22-26 -o out.gguf
    """


for command in (
    export_command,
    inspect_command,
    verify_command,
    stock_command,
    analyze_command,
    search_command,
    eval_command,
    lm_eval_command,
    heal_command,
    run_command,
    serve_command,
    bench_command,
    report_command,
    runtime_group,
    doctor_command,
):
    cli.add_command(command)


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
