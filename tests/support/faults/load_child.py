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
from typing import Self

from shareatt_export.errors import BadInput, RuntimeProblem
from shareatt_export.llamacpp.bindings import load
from shareatt_export.llamacpp.engine import Context, Model, Token

SECONDS = 120  # that a child may take; most take a tenth of one
OUTCOMES = {0: "decoded", 1: "refused", 2: "no context"}


@dataclass(frozen=True)
class LoadResult:
    """How the process of a load ended, and what it said: the reason of a refusal, or of its death."""

    status: int
    said: str

    @property
    def outcome(self) -> str:
        return OUTCOMES.get(self.status, f"status {self.status}")


def try_load(lib: ModuleType, path: Path) -> LoadResult:
    """Load a model, and if it loads decode some tokens, in a child that may die of it."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.dup2(writer, 2)
        faulthandler.disable()  # pytest's
        os.environ["GGML_NO_BACKTRACE"] = "1"  # of an abort; gdb would print it, in seconds
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
    options = {"n_ctx": 64, "n_batch": 32, "n_threads": 1, "n_threads_batch": 1}
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
    """The same on the library of another folder, which needs a process that has loaded it: Other(...).tried(path)."""

    def __init__(self, python: Path, bin: Path, **env: str) -> None:
        command = [sys.executable, "-m", "tests.support.faults.load_child", str(python), str(bin)]
        self._process = subprocess.Popen(
            command, env=os.environ | env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tried(self, path: Path) -> LoadResult:
        assert self._process.stdin and self._process.stdout
        print(path, file=self._process.stdin, flush=True)
        return LoadResult(*json.loads(self._process.stdout.readline()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def main(python: str, bin: str) -> None:
    lib = load(Path(python), Path(bin))
    for line in sys.stdin:
        of = try_load(lib, Path(line.rstrip("\n")))
        print(json.dumps([of.status, of.said]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
