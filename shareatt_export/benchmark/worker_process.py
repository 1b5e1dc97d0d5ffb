"""The measuring process's side of worker.py: start a worker for a setting, give it commands, read its answers."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ..errors import BadInput, RuntimeProblem
from ..llamacpp import runtime
from ..llamacpp.runtime import DENSE_KERNELS, P_BYTES
from ..system.child_process import started
from .request import BenchRequest
from .settings import Setting, cache_type

N_UBATCH = 512  # llama.cpp's default


class WorkerProcess:
    """A worker process with the model of one setting in memory.

    `buffers` are the sizes in bytes that llama.cpp's log gives for "kv" and "compute". `memory` are the peaks in bytes
    of "rss" and "anonymous" up to the last answer; "anonymous" is None where the system does not tell it. With `clock`
    the worker times the attention of each layer. Raises what the worker reports, RuntimeProblem if it dies.
    """

    def __init__(self, setting: Setting, request: BenchRequest, *, clock: bool) -> None:
        self.setting = setting
        command = [sys.executable, "-m", "shareatt_export.benchmark.worker"]
        command.append(json.dumps(_specification(setting, request, clock)))
        self._resources = ExitStack()
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (it stays open as long as the process)
        self._resources.callback(self._errors.close)
        child = started(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=_environment(setting),
        )
        self.process = self._resources.enter_context(child)
        self.memory: dict[str, int | None] = {"rss": None, "anonymous": None}
        try:
            self.buffers: dict[str, int] = self._answer()["buffers"]
        except BaseException:
            self.close()
            raise

    def run_command(self, command: str, **arguments: int) -> list[dict[str, float]]:
        """Send "fill", "prefill" or "decode", wait, and return the seconds of each step as worker.py describes them."""
        assert self.process.stdin  # noqa: S101
        try:
            self.process.stdin.write(json.dumps({"command": command} | arguments) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the worker died; reading its answer raises the error
        seconds: list[dict[str, float]] = self._answer()["seconds"]
        return seconds

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout  # noqa: S101
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeProblem(f"'{self.setting.name}' {self._death()}", path=self.setting.model)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise (BadInput if answer["bad_input"] else RuntimeProblem)(**answer["error"])
        self.memory["rss"] = answer["memory"]["rss"]
        if (anonymous := answer["memory"]["anonymous"]) is not None:
            self.memory["anonymous"] = max(self.memory["anonymous"] or 0, anonymous)
        return answer

    def _death(self) -> str:
        status = self.process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()] or ["too little memory? try smaller --depths"]
        return f"died (status {status}): {lines[-1]}"

    def close(self) -> None:
        """Kill the process, if it still runs."""
        self.process.kill()
        self.process.communicate()
        self._resources.close()


@contextmanager
def worker_processes(
    settings: tuple[Setting, ...], request: BenchRequest, *, clock: bool
) -> Iterator[list[WorkerProcess]]:
    """Start a worker for each setting, and end them all after the block. Raises as WorkerProcess does."""
    with ExitStack() as stack:
        workers: list[WorkerProcess] = []
        for setting in settings:
            workers.append(WorkerProcess(setting, request, clock=clock))
            stack.callback(workers[-1].close)
        yield workers


def _specification(setting: Setting, request: BenchRequest, clock: bool) -> dict[str, Any]:
    """Return the object that the worker gets as its argument."""
    patched = runtime.require_built()
    return {
        "python": str(patched.python),
        "bin": str((patched if setting.patched else runtime.require_built(patched=False)).bin),
        "model": str(setting.model),
        "flash_attn": setting.flash_attn,
        "clock": clock,
        "offload": {"gpu_layers": request.gpu_layers, "device": request.device},
        "context": {
            "n_ctx": request.n_ctx,
            "n_batch": max(request.prompt, N_UBATCH),
            "n_ubatch": N_UBATCH,
            "n_seq_max": 2,  # the second sequence is for copies, see worker.py
            "kv_unified": True,
            "n_threads": request.threads,
            "n_threads_batch": request.threads,
            "type_k": int(cache_type(request.type_k)),
            "type_v": int(cache_type(request.type_v)),
        },
    }


def _environment(setting: Setting) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if name not in (P_BYTES, DENSE_KERNELS)}
    budget = {} if setting.p_bytes is None else {P_BYTES: str(setting.p_bytes)}
    return others | budget | {DENSE_KERNELS: str(int(setting.kernels))}
