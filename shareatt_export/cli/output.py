"""Where the commands print: results on stdout, all else on stderr; and the folders that they write reports to."""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ..errors import RuntimeProblem
from ..system.staging import check_output, made_folder

out = Console(width=None if sys.stdout.isatty() else 120)
err = Console(stderr=True, width=None if sys.stderr.isatty() else 120)


def command_line() -> str:
    """Return the command that runs, as a shell takes it."""
    return shlex.join(["shareatt-export", *sys.argv[1:]])


def print_json(data: dict[str, Any]) -> None:
    click.echo(json.dumps(data, indent=2))


def require_matplotlib(option: str) -> None:
    """Raises RuntimeProblem that says how to get it. Called before minutes of measurement."""
    if find_spec("matplotlib") is None:
        raise RuntimeProblem(f"matplotlib is needed for {option}", next_step="pip install 'shareatt-export[plot]'")


@contextmanager
def report_folder(folder: Path | None, names: Sequence[str], force: bool) -> Iterator[tuple[Path, ...]]:
    """Yield the files of a report, pictures among them, that will be written to a folder; none without a folder.

    The folder is made. Raises OutputRefused before anything that takes long, if a file exists and may not be replaced.
    """
    if folder is None:
        yield ()
        return
    require_matplotlib("-o")
    with made_folder(folder):
        files = tuple(folder / name for name in names)
        for path in files:
            check_output(path, [], force)
        yield files
