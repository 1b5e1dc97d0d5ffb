"""The GPUs that the runtime can compute on, and how much of a model it puts there."""

import ctypes
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import RuntimeProblem
from .runtime import tool

NO_DEVICE = "none"  # as llama.cpp's --device spells it
_LINE = re.compile(r"^  (\S+?): (.+)$", re.MULTILINE)  # of --list-devices


@dataclass(frozen=True)
class Device:
    """`name` is what --device takes, such as "CUDA0"; `description` is the driver's, with the memory."""

    name: str
    description: str


def devices() -> tuple[Device, ...]:
    """Return the devices that the runtime finds beside the CPU.

    A program of the runtime lists them, because a driver may need long, write messages or fail. Raises RuntimeProblem
    if it is not built, or that program fails.
    """
    command = [str(tool("llama-bench")), "--list-devices"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise RuntimeProblem(str(error.strerror), path=Path(command[0])) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise RuntimeProblem(lines[-1], field="llama-bench --list-devices")
    return tuple(Device(*found) for found in _LINE.findall(done.stdout))


def offload_params(lib: ModuleType, gpu_layers: int | None, device: str | None) -> dict[str, Any]:
    """Return fields of llama_model_params that put `gpu_layers` layers (-1: all) on the device called `device`.

    None leaves it to llama.cpp, which puts all layers on all devices. Raises RuntimeProblem if there is no such device.
    """
    params: dict[str, Any] = {} if gpu_layers is None else {"n_gpu_layers": gpu_layers}
    if device is None:
        return params
    chosen = [] if device == NO_DEVICE else [_handle(lib, name) for name in device.split(",")]
    array = (ctypes.c_void_p * (len(chosen) + 1))(*chosen, None)
    return params | {"devices": ctypes.cast(array, ctypes.c_void_p)}  # the cast keeps the array


def _handle(lib: ModuleType, name: str) -> int:
    find = lib._lib.ggml_backend_dev_by_name
    find.argtypes, find.restype = [ctypes.c_char_p], ctypes.c_void_p
    if not (handle := find(os.fsencode(name))):
        raise RuntimeProblem(
            f"the runtime sees no device '{name}'",
            field="--device",
            next_step="'shareatt-export runtime status' lists the devices",
        )
    return int(handle)
