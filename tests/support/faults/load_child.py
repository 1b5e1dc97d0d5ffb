"""Load a file with llama.cpp in a child process, because a broken file may crash it.

python -m tests.support.faults.load_child PYTHON_DIR BIN_DIR

The command reads paths from stdin, and prints one line of JSON for each: [status, output].
"""

import faulthandler
import json
import os
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from shareatt_export.errors import BadInput, RuntimeProblem
from shareatt_export.llamacpp.bindings import load
from shareatt_export.llamacpp.engine import Context, Model, Token

SECONDS = 120  # time limit of a child; most take a tenth of a second
OUTCOMES = {0: "decoded", 1: "refused", 2: "no context"}


@dataclass(frozen=True)
class LoadResult:
    """The exit status of a child process (a negative signal number if it crashed), and its output, with the reason."""

    status: int
    said: str

    @property
    def outcome(self) -> str:
        """A word of OUTCOMES, or the status in words."""
        return OUTCOMES.get(self.status, f"status {self.status}")


def try_load(lib: ModuleType, path: Path) -> LoadResult:
    """Load a model in a forked child, and decode some tokens if it loads."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.dup2(writer, 2)
        faulthandler.disable()  # pytest enabled it; its output is not wanted
        os.environ["GGML_NO_BACKTRACE"] = "1"  # gdb would print it at an abort, which takes seconds
        os._exit(_try(lib, path))
    os.close(writer)
    with os.fdopen(reader, errors="replace") as output:
        said = output.read()
    return LoadResult(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said)


def _try(lib: ModuleType, path: Path) -> int:
    def end(status: int, said: str) -> int:
        os.write(2, said.encode(errors="replace"))
        return status

    signal.alarm(SECONDS)
    options: dict[str, Any] = {"n_ctx": 64, "n_batch": 32, "n_threads": 1, "n_threads_batch": 1}
    try:
        with Model(lib, path) as model, Context(model, **options) as context:
            context.decode([Token(i % max(1, model.n_vocab), i) for i in range(8)])
        return 0
    except BadInput as error:
        return end(1, str(error))
    except RuntimeProblem as error:
        return end(2, str(error))
    except BaseException:
        return end(3, traceback.format_exc())


class LoadChild:
    """Load models with the library of a folder, in a process that has loaded only that library.

    Tests of many files use it for our library, too: to fork this small process takes a fraction of the time.

    with LoadChild(python, bin) as other:
        result = other.try_load(path)
    """

    def __init__(self, python: Path, bin: Path, **env: str) -> None:
        command = [sys.executable, "-m", "tests.support.faults.load_child", str(python), str(bin)]
        self._process = subprocess.Popen(
            command, env=os.environ | env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def try_load(self, path: Path) -> LoadResult:
        """Return the result of try_load in the other process."""
        assert self._process.stdin and self._process.stdout
        print(path, file=self._process.stdin, flush=True)
        return LoadResult(*json.loads(self._process.stdout.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def main(python: str, bin: str) -> None:
    """Answer each path on stdin with the JSON of its result."""
    lib = load(Path(python), Path(bin))
    for line in sys.stdin:
        result = try_load(lib, Path(line.rstrip("\n")))
        print(json.dumps([result.status, result.said]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
