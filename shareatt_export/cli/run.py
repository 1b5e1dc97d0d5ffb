"""`shareatt-export run` and `serve`: programs of the runtime, in the place of this process."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .option_types import FILE
from .options import Command, device_option, gpu_layers_option


def options_of_program(command: Command) -> Command:
    """Add --threads, --gpu-layers, --device and --sa-kernels, and the arguments behind --."""
    threads = click.option(
        "--threads", type=click.IntRange(1), help="Number of threads.  [default: llama.cpp's, the physical cores]"
    )
    arguments = click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGUMENT...]")
    kernels = click.option(
        "--sa-kernels",
        is_flag=True,
        help="Compute the attention of a dense model with the kernels of SA models, too: faster in long contexts on a "
        "CPU; the results differ by rounding.",
    )
    return gpu_layers_option(device_option(threads(kernels(arguments(command)))))


@click.command("run", short_help="Generate text with a GGUF.")
@click.argument("file", type=FILE)
@click.option("-p", "--prompt", required=True, help="The text to continue.")
@click.option("-n", "--n-predict", type=int, default=128, show_default=True, help="Number of tokens to generate.")
@options_of_program
def run_command(file: Path, prompt: str, n_predict: int, **options: Any) -> None:
    """Generate text with FILE in the patched llama.cpp. Arguments behind -- go to llama-completion."""
    _become("llama-completion", file, ["-p", prompt, "-n", str(n_predict), "-no-cnv"], **options)


@click.command("serve", short_help="Serve a GGUF over HTTP.")
@click.argument("file", type=FILE)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=8080, show_default=True, help="Port to listen on.")
@options_of_program
def serve_command(file: Path, host: str, port: int, **options: Any) -> None:
    """Serve FILE with the patched llama-server (OpenAI-compatible). Arguments behind -- go to it."""
    _become("llama-server", file, ["--host", host, "--port", str(port)], **options)


def _become(
    program: str,
    file: Path,
    own: Sequence[str],
    threads: int | None,
    gpu_layers: int | None,
    device: str | None,
    sa_kernels: bool,
    arguments: Sequence[str],
) -> None:
    """Replace this process with a program of the runtime."""
    from ..formats.shards import read_model
    from ..llamacpp.bindings import waiting
    from ..llamacpp.runtime import DENSE_KERNELS, tool
    from ..model.facts import read_facts
    from ..system.operating_system import replace_process

    read_facts(read_model(file))  # a bad file gets our message, not the program's log
    path = str(tool(program))
    given = {"--threads": threads, "--gpu-layers": "all" if gpu_layers == -1 else gpu_layers, "--device": device}
    shared = [text for name, value in given.items() if value is not None for text in (name, str(value))]
    kernels = {DENSE_KERNELS: "1"} if sa_kernels else {}
    replace_process([path, "-m", str(file), *shared, *own, *arguments], waiting() | os.environ | kernels)
