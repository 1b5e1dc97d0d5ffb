"""Run a Python program that nobody has read, in a child process with limits, and say whether it ran to its end.

    run("assert 1 + 1 == 2", seconds=5)        # None: it did
    run("while True: pass", seconds=5)         # "timed out"

Limits: time, memory, size of files, number of open files and of processes; an empty folder as working directory, no
environment, no standard input or output. Where the system lets this user make namespaces, the child has no network and
sees no other processes. Modules that start processes, open sockets or call C functions cannot be imported.

That stops programs that are wrong, not those that are written to break out: for these, use a container.
"""

import functools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress

MEMORY = 1 << 30  # bytes of address space
NAMESPACES = ("unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")

# argv: the word that says that the program ran to its end, seconds, bytes. The word goes to a pipe that the program
# does not know, so that no way of ending the process looks like success.
CHILD = """
import os, resource, sys
word, seconds, memory = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
program = sys.stdin.read()
outcome = os.dup(1)
null = os.open(os.devnull, os.O_RDWR)
for file in 0, 1, 2:
    os.dup2(null, file)
for limit, n in (("CPU", seconds), ("AS", memory), ("FSIZE", 1 << 20), ("NOFILE", 64), ("NPROC", 0), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + limit), (n, n))
for name in "fork", "forkpty", "posix_spawn", "posix_spawnp", "system", "kill", "killpg":  # NPROC does not bind root
    setattr(os, name, None)
for name in "subprocess", "_posixsubprocess", "multiprocessing", "ctypes", "_ctypes", "_socket":
    sys.modules[name] = None
sys.argv = [""]
try:
    exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
except BaseException as error:
    text = type(error).__name__ + ": " + str(error)[:200]
else:
    text = word
os.write(outcome, text.encode("utf-8", "replace"))
os._exit(0)
"""


@functools.cache
def namespaces() -> tuple[str, ...]:
    """Return the command that runs another one without network and other processes; nothing where it does not work."""
    if shutil.which(NAMESPACES[0]) is None:
        return ()
    return NAMESPACES if subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode == 0 else ()


def run(program: str, seconds: int, memory: int = MEMORY) -> str | None:
    """Run a program. Return None if it ran to its end, else why it did not."""
    word = secrets.token_hex(16)
    child = [sys.executable, "-I", "-S", "-X", "utf8", "-c", CHILD, word, str(seconds), str(memory)]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [*namespaces(), *child],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        try:
            outcome = process.communicate(program.encode("utf-8", "replace"), timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            return "timed out"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also what the program has started
            process.communicate()
    text = outcome.decode("utf-8", "replace")
    return None if text == word else text or "ended without a word"
