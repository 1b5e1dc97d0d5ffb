"""`shareatt-export run` and `serve`: programs of the runtime, in the place of this process."""

import os
from pathlib import Path

import click

from .option_types import FILE

arguments_of_program = click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGUMENT...]")
threads_of_program = click.option(
    "--threads", type=click.IntRange(1), help="Number of threads.  [default: llama.cpp's, the physical cores]"
)


@click.command("run", short_help="Generate text with a GGUF.")
@click.argument("file", type=FILE)
@click.option("-p", "--prompt", required=True, help="The text to continue.")
@click.option("-n", "--n-predict", type=int, default=128, show_default=True, help="Number of tokens to generate.")
@threads_of_program
@arguments_of_program
def run_command(file: Path, prompt: str, n_predict: int, threads: int | None, arguments: tuple[str, ...]) -> None:
    """Generate text with FILE in the patched llama.cpp. Arguments behind -- go to llama-completion."""
    _become("llama-completion", file, threads, "-p", prompt, "-n", str(n_predict), "-no-cnv", *arguments)


@click.command("serve", short_help="Serve a GGUF over HTTP.")
@click.argument("file", type=FILE)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=8080, show_default=True, help="Port to listen on.")
@threads_of_program
@arguments_of_program
def serve_command(file: Path, host: str, port: int, threads: int | None, arguments: tuple[str, ...]) -> None:
    """Serve FILE with the patched llama-server (OpenAI-compatible). Arguments behind -- go to it."""
    _become("llama-server", file, threads, "--host", host, "--port", str(port), *arguments)


def _become(program: str, file: Path, threads: int | None, *arguments: str) -> None:
    """Replace this process with a program of the runtime."""
    from ..formats.shards import read_model
    from ..llamacpp.runtime import tool
    from ..model.facts import read_facts

    read_facts(read_model(file))  # a bad file gets our message, not the program's log
    path = str(tool(program))
    n_threads = [] if threads is None else ["--threads", str(threads)]
    os.execve(path, [path, "-m", str(file), *n_threads, *arguments], _waiting() | os.environ)  # noqa: S606


def _waiting() -> dict[str, str]:
    """Return how threads wait at OpenMP's barriers, unless the user's environment says it.

    By default they spin so long that other programs make generation several times slower, and llama.cpp's --poll does
    not change it. To sleep at once (OMP_WAIT_POLICY=passive) would halve the speed of a machine with nothing else to do
    (docs/runtime.md).
    """
    return {} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": "1000"}
