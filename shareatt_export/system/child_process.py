"""Run a child process and read its output line by line.

An exception in this process terminates the child; SIGKILL of this process does not.
"""

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def run(
    command: Sequence[str],
    on_line: Callable[[str], object],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """Run the command and return its exit status.

    `on_line` gets each line of stdout and stderr as soon as it is complete; '\\r' also ends a line (progress bars).
    """
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as child:
        try:
            for line in child.stdout or ():
                on_line(line)
        except BaseException:
            child.terminate()
            raise
    return child.returncode
