"""How the runtime is built beyond the defaults: the backends for GPUs, and CMake options of the user's own.

The choice is kept in the cache for the next builds, also those of later versions: who built for a GPU goes on using it.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import RuntimeProblem
from .runtime import CMAKE_OPTIONS
from .source import cache_dir, private_cache

CPU = "cpu"  # as a backend: nothing but the CPU, whatever was chosen before
FIXED = frozenset(option.removeprefix("-D").partition("=")[0] for option in CMAKE_OPTIONS)


@dataclass(frozen=True)
class Backend:
    """A backend of llama.cpp: what CMake is told, and the program that its toolkit is known by.

    `elsewhere` is an environment variable that may give the path of the program or of the toolkit. `system` is the only
    value of sys.platform that has the backend; None: all.
    """

    options: tuple[str, ...]
    program: str
    elsewhere: str
    toolkit: str
    system: str | None = None


BACKENDS = {
    "cuda": Backend(("-DGGML_CUDA=ON",), "nvcc", "CUDACXX", "the CUDA toolkit of NVIDIA"),
    "vulkan": Backend(("-DGGML_VULKAN=ON",), "glslc", "VULKAN_SDK",
                      "the Vulkan SDK (Debian: apt install libvulkan-dev glslc spirv-headers)"),
    "metal": Backend(("-DGGML_METAL=ON",), "xcrun", "DEVELOPER_DIR", "Xcode (xcode-select --install)", "darwin"),
    "hip": Backend(("-DGGML_HIP=ON",), "hipcc", "HIPCXX", "ROCm of AMD"),
    "sycl": Backend(("-DGGML_SYCL=ON", "-DCMAKE_C_COMPILER=icx", "-DCMAKE_CXX_COMPILER=icpx"), "icpx", "ONEAPI_ROOT",
                    "oneAPI of Intel, and run its setvars.sh"),
}  # fmt: skip


def cmake_options(backends: Sequence[str], options: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the arguments of CMake for backends, keys of BACKENDS or CPU, and for options like "NAME=VALUE".

    Raises RuntimeProblem if the toolkit of a backend is missing, or an option cannot be set.
    """
    for name in backends:
        if name != CPU:
            _check(name, BACKENDS[name])
    for option in options:
        name, equals, _ = option.partition("=")
        if not equals or not re.fullmatch(r"\w+(:\w+)?", name):
            raise RuntimeProblem(f"'{option}' is not NAME=VALUE", field="--cmake-option")
        if name.partition(":")[0] in FIXED:
            raise RuntimeProblem(f"{name} is set by this tool", field="--cmake-option", next_step="leave it out")
    chosen = [option for name in dict.fromkeys(backends) if name != CPU for option in BACKENDS[name].options]
    return (*chosen, *(f"-D{option}" for option in options))


def _check(name: str, backend: Backend) -> None:
    if backend.system not in (None, sys.platform):
        raise RuntimeProblem(f"{name} exists on macOS only", field="--backend", next_step="choose another backend")
    if not shutil.which(backend.program) and not os.environ.get(backend.elsewhere):
        raise RuntimeProblem(
            f"{backend.program} is needed to build for {name}, and is not on PATH",
            field="--backend",
            next_step=f"install {backend.toolkit}",
        )


def _record() -> Path:
    return cache_dir() / "build-options.json"


def remember(options: Sequence[str]) -> None:
    """Keep the choice for the next builds. Raises RuntimeProblem as private_cache() does."""
    private_cache()
    temporary = _record().with_suffix(".tmp")
    temporary.write_text(json.dumps(list(options)) + "\n")
    temporary.replace(_record())


def remembered() -> tuple[str, ...]:
    """Return the choice that was kept last; () if there is none."""
    try:
        options = json.loads(_record().read_text())
    except (OSError, ValueError):
        return ()
    return tuple(map(str, options)) if isinstance(options, list) else ()
