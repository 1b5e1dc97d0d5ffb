"""Run child processes that end with this one: after an exception in this process, and after its SIGKILL.

with started(["llama-quantize", ...]) as child:
    child.wait()
"""

import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .process_group import process_group


@contextmanager
def started(command: Sequence[str], **options: Any) -> "Iterator[subprocess.Popen[Any]]":
    """Start the command; `options` are those of Popen. The block waits for its end.

    An exception in the block, and a death of this process, stop the child and all that it started. Raises OSError if
    the command cannot be started.
    """
    group = process_group()
    try:
        with subprocess.Popen(command, **options, **group.options) as child:
            group.add(child)
            try:
                yield child
            except BaseException:
                group.stop()
                raise
    finally:
        group.close()


def run(
    command: Sequence[str],
    on_line: Callable[[str], object],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """Run the command and return its exit status.

    `on_line` gets each line of stdout and stderr as soon as it is complete; '\\r' also ends a line (progress bars).
    """
    with started(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as child:
        for line in child.stdout or ():
            on_line(line)
    return int(child.returncode)
