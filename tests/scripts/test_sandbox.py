"""Programs that are right, wrong, endless or greedy, in the sandbox of scripts/humaneval.py."""

import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts import sandbox

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the limits are those of POSIX")


@pytest.mark.parametrize("limited", [True, False], ids=["namespaces", "no namespaces"])
@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("assert 1 + 1 == 2", None),
        ("import math, typing, collections, hashlib, random, re, itertools, heapq, copy, datetime, functools", None),
        ("x = '\u00e9'\nprint(x)\nopen('here', 'w').write(x)\nassert open('here').read() == x", None),
        ("import os\nassert not os.listdir() and not set(os.environ) - {'LC_CTYPE'}", None),
        ("assert 1 + 1 == 3, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError: invalid syntax (<program>, line 1)"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
        ("x = []\nwhile True: x.append(bytes(10 ** 7))", "MemoryError: "),
        ("open('x', 'w').write('x' * (1 << 22))", "OSError: [Errno 27] File too large"),
        ("files = [open('/dev/null') for _ in range(99)]", "OSError: [Errno 24] Too many open files: '/dev/null'"),
        ("import os\nwhile True: os.fork()", "TypeError: 'NoneType' object is not callable"),
        ("import subprocess", "ModuleNotFoundError: import of subprocess halted; None in sys.modules"),
        ("import socket", "ModuleNotFoundError: import of _socket halted; None in sys.modules"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import os\nos._exit(0)", "ended without a word"),
        ("import os\nos.abort()", "ended without a word"),
        ("while True: pass", "timed out"),
        ("import time\ntime.sleep(99)", "timed out"),
        ("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass", "timed out"),
    ],
)
def test_what_becomes_of_a_program(monkeypatch, limited, program, outcome):
    if not limited:
        monkeypatch.setattr(sandbox, "namespaces", lambda: ())
    elif not sandbox.namespaces():
        pytest.skip("this system lets this user make no namespaces")
    found = sandbox.run(program, 4 if outcome != "timed out" else 1)
    assert found == outcome or (outcome == "timed out" and found == "ended without a word")  # the limit of CPU time


STARTS_ANOTHER = """
import sys
del sys.modules["_posixsubprocess"], sys.modules["subprocess"]
import subprocess
subprocess.Popen(["/bin/sleep", "98765"])
"""


def running():
    """Return whether a process of STARTS_ANOTHER is there."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            if path.read_bytes().startswith(b"/bin/sleep\x0098765"):
                return True
    return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("wrapped", [sandbox.namespaces(), ()], ids=["namespaces", "no namespaces"])
def test_a_process_that_gets_around_the_guards_ends_with_its_program(monkeypatch, wrapped):
    """Root may start processes in spite of the limit; a pipe that one of them holds delays nothing beyond the time."""
    monkeypatch.setattr(sandbox, "namespaces", lambda: wrapped)
    sandbox.run(STARTS_ANOTHER, 2)
    deadline = time.monotonic() + 10  # a killed process is listed until the system has removed it
    while running() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running()
