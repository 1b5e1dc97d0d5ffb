"""Options that several commands have. Nothing here takes time to import: --help and completion must be quick."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from .option_types import FILE, GpuLayers, Percent

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print only results and errors.")
source_option = click.option(
    "--source",
    type=click.Choice(["first", "previous"]),
    default="first",
    show_default=True,
    help="The source of a range A-B: its first layer, or the layer before it (as in the paper's code).",
)
llama_cpp_option = click.option(
    "--llama-cpp", type=FILE, metavar="DIR", help="Use your own llama.cpp checkout instead of the pinned source."
)


def text_option(purpose: str) -> Callable[[Command], Command]:
    """--text, repeatable. `purpose` begins its help."""
    return click.option(
        "--text",
        type=FILE,
        metavar="PATH",
        multiple=True,
        help=f"{purpose}: a file, or a folder of files. Repeatable; then the texts take turns.  "
        "[default: a mixture of prose, code, documentation and chat]",
    )


threads_option = click.option(
    "--threads",
    "n_threads",
    type=click.IntRange(1),
    default=os.cpu_count() or 2,
    show_default=True,
    help="Number of threads.",
)
gpu_layers_option = click.option(
    "-ngl", "--gpu-layers", type=GpuLayers(), help="Number of layers to put on the GPU.  [default: all that fit]"
)
device_option = click.option(
    "--device",
    metavar="NAME,...",
    help="Devices to use, as 'runtime status' lists them; none: the CPU.  [default: all]",
)
reach_option = click.option(
    "--reach",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Maximum number of layers from a source to its follower.",
)
force_files_option = click.option("--force", is_flag=True, help="Overwrite the files in DIR.")


def window_options(n_ctx: int, n_windows: int = 16, least: int = 1) -> Callable[[Command], Command]:
    """--ctx and --windows, with these defaults; at least `least` windows are needed."""

    def decorated(command: Command) -> Command:
        for option in (
            click.option("--windows", "n_windows", type=click.IntRange(least), default=n_windows, show_default=True,
                         help="Maximum number of windows."),
            click.option("--ctx", "n_ctx", type=click.IntRange(8), default=n_ctx, show_default=True,
                         help="Tokens of a window."),
        ):  # fmt: skip
            command = option(command)
        return command

    return decorated


def budget_options(command: Command) -> Command:
    """Add the options that end a search: --save, --kv-bytes, --max-kl and --followers; and --fast."""
    for option in (
        click.option("--fast", is_flag=True, help="Search: measure less, and so find less."),
        click.option("--kv-bytes", type=click.IntRange(1), metavar="N",
                     help="Search: stop when one token takes at most N bytes of KV cache (f16)."),
        click.option("--max-kl", type=click.FloatRange(0, min_open=True), metavar="KL",
                     help="Search: stop before the mean KL divergence to MODEL exceeds KL, in nats per token."),
        click.option("--followers", type=click.IntRange(1), metavar="N",
                     help="Search: stop when N layers reuse attention weights."),
        click.option("--save", type=Percent(),
                     help="Search: stop when the KV cache is smaller by N percent, as in 10%."),
    ):  # fmt: skip
        command = option(command)
    return command
