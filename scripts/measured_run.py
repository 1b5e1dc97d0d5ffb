"""Run a command, and note how long it took and how much memory."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """`seconds` on the clock, `cpu_seconds` of all cores, `peak_kb`: most memory of one process, mapped files too."""

    words: tuple[str, ...]
    seconds: float
    cpu_seconds: float
    peak_kb: int
    printed: str


def shareatt_export(arguments: Sequence[object]) -> Run:
    """Run the tool. Ends this program where it fails."""
    words = tuple(map(str, arguments))
    print("+ shareatt-export", *words, file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "shareatt_export", *words]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        printed = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"Error: shareatt-export {words[0]} failed")
    return Run(words, time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, printed)
