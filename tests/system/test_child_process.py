"""Child processes end with the process that watches them, however that one ends."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from shareatt_export.system import child_process

ROOT = Path(__file__).parents[2]
SLOW = "import os, pathlib, sys, time; print(os.getpid(), flush=True); time.sleep(5); pathlib.Path(sys.argv[1]).touch()"
# The child starts a process of its own, as cmake starts ninja.
FAMILY = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLOW!r}, *sys.argv[1:]])"
# A parent that starts the child in a thread, which ends before the child does.
PARENT = f"""
import subprocess, sys, threading, time
from shareatt_export.system.child_process import started
def start():
    global child
    child = started([sys.executable, "-c", {FAMILY!r}, *sys.argv[1:]])
    child.__enter__()
thread = threading.Thread(target=start)
thread.start()
thread.join()
time.sleep(60)
"""


def is_running(pid: int) -> bool:
    """Return whether the process exists and is not a zombie that its parent has not waited for."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(done.stdout.strip()) and not done.stdout.startswith("Z")


def children() -> set[str]:
    """Return the process ids of this process's children, zombies among them."""
    return set(subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True).stdout.split())


def wait_until(condition) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within ten seconds")


QUANTIZE = """
import subprocess, sys
from shareatt_export.system.child_process import started
with started(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
    print(child.pid, flush=True)
    child.wait()
"""


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("program", [SLOW, FAMILY], ids=["child", "grandchild"])
def test_a_child_is_stopped_with_what_watches_it(tmp_path, error, program):
    lines = []

    def stop(line: str) -> None:
        lines.append(line)
        raise error

    with pytest.raises(error):
        child_process.run([sys.executable, "-c", program, str(tmp_path / "ended")], stop)
    with suppress(ChildProcessError):  # Popen does not wait after an interrupt
        os.waitpid(int(lines[0]), 0)
    wait_until(lambda: not is_running(int(lines[0])))
    assert not (tmp_path / "ended").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_child_dies_with_its_parent(tmp_path, number):
    command = [sys.executable, "-c", PARENT, tmp_path / "ended"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.send_signal(number)
    wait_until(lambda: not is_running(pid))
    assert not (tmp_path / "ended").exists()


def test_a_child_that_ends_leaves_nothing_behind(tmp_path):
    """Neither open files nor processes, and the exit status is the child's own."""
    open_files, before = len(list(Path("/dev/fd").iterdir())), children()
    assert child_process.run([sys.executable, "-c", "raise SystemExit(7)"], print) == 7
    assert child_process.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], print) == -9
    with pytest.raises(FileNotFoundError, match="none"):
        child_process.run([str(tmp_path / "none")], print)
    assert len(list(Path("/dev/fd").iterdir())) == open_files
    assert children() == before


def test_llama_quantize_dies_with_its_parent(built, tmp_path):
    """The real program, which waits for its model as long as nobody writes into the pipe."""
    os.mkfifo(tmp_path / "pipe.gguf")
    quantize = [built.bin / "llama-quantize", tmp_path / "pipe.gguf", tmp_path / "out.gguf", "q8_0"]
    command = [sys.executable, "-c", QUANTIZE, *quantize]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    wait_until(lambda: not is_running(pid))
