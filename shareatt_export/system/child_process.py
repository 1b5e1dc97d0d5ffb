"""A child process that is watched line by line, and stopped if what watches it is (but not if that is killed)."""

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def run(
    command: Sequence[str],
    on_line: Callable[[str], object],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """The exit status. Each line of stdout and stderr goes to `on_line` as it comes; '\\r' ends one too (bars)."""
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
