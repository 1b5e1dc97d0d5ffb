"""Find out what the tool needs and this machine lacks, and the commands that install it."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from .._version import __version__
from ..errors import RuntimeProblem
from ..system.operating_system import n_usable_cpus, processor_information, processor_name
from .build import find_program
from .devices import devices
from .pin import patch_id, pin
from .runtime import RuntimeStatus, built_status, status
from .source import cache_dir

State = Literal["ok", "missing", "information"]
EXTRAS = {
    "hf": ("torch", "transformers", "sentencepiece", "safetensors", "protobuf"),
    "plot": ("matplotlib",),
}
EXTRA_PURPOSES = {
    "hf": "to read and heal Hugging Face models; GGUF files need none of it",
    "plot": "to draw pictures",
}
CPU_FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512_fp16", "avx512_bf16", "amx_int8", "asimd", "asimddp", "sve")


@dataclass(frozen=True)
class Finding:
    """What the machine has, or lacks, of one thing; `next_step` is what the user can do, a command if there is one."""

    subject: str
    state: State
    detail: str
    next_step: str | None = None


def diagnose() -> list[Finding]:
    """Return a finding for Python, the package, its extras, the processor, the build tools and the runtime.

    Builds and installs nothing.
    """
    return [
        _python(),
        _package(),
        _processor(),
        *map(_extra, EXTRAS),
        *_build_tools(),
        _runtime(),
        *_devices(),
        _unpatched(),
    ]


def _python() -> Finding:
    detail = f"{platform.python_version()} ({platform.python_implementation()}) on {platform.platform()}"
    return Finding("Python", "ok", detail)


def _package() -> Finding:
    libraries = ", ".join(f"{name} {_version(name) or 'missing'}" for name in ("gguf", "numpy", "scipy", "click"))
    return Finding("shareatt-export", "ok", f"{__version__} in {Path(__file__).parents[1]} ({libraries})")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _extra(extra: str) -> Finding:
    subject = f"extra [{extra}]"
    found = {package: _version(package) for package in EXTRAS[extra]}
    if missing := [package for package, installed in found.items() if installed is None]:
        detail = f"{', '.join(missing)} not installed; needed {EXTRA_PURPOSES[extra]}"
        return Finding(subject, "missing", detail, f"pip install 'shareatt-export[{extra}]'")
    return Finding(subject, "ok", ", ".join(f"{package} {installed}" for package, installed in found.items()))


def _processor() -> Finding:
    detail = f"{platform.machine()}, {os.cpu_count()} logical CPUs, {n_usable_cpus()} of them usable"
    info = processor_information()
    if not info:
        return Finding("processor", "information", detail)
    flags = re.search(r"^(?:flags|Features)\s*: (.*)$", info, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    features = " ".join(feature for feature in CPU_FEATURES if feature in present) or "none of those that matter here"
    return Finding("processor", "information", f"{processor_name()}, {detail}; features: {features}")


def _build_tools() -> list[Finding]:
    """Find the programs that `runtime build` calls, which are only needed until the runtime is built."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    found = {
        "C++ compiler": compiler and shutil.which(compiler),
        "git": shutil.which("git"),
        "cmake": find_program("cmake"),
    }
    steps = {
        "C++ compiler": "install g++ or clang (Debian: apt install g++; macOS: xcode-select --install)",
        "git": "install git (Debian: apt install git)",
        "cmake": "pip install 'shareatt-export[build]'",
    }
    findings = []
    for subject, path in found.items():
        if path:
            findings.append(Finding(subject, "ok", path))
        elif _is_ready():
            findings.append(Finding(subject, "information", "not found; the runtime is ready, so it is not needed"))
        else:
            findings.append(Finding(subject, "missing", "not found; needed once, to build the runtime", steps[subject]))
    for subject, path in {"ninja": find_program("ninja"), "ccache": find_program("ccache")}.items():
        findings.append(Finding(subject, "information", path or "not found; builds are slower without it"))
    return findings


def _is_ready(find: Callable[[], RuntimeStatus] = status) -> bool:
    try:
        return find().ready
    except RuntimeProblem:  # there is no home folder
        return False


def _runtime() -> Finding:
    try:
        found = status()
    except RuntimeProblem as error:
        return Finding("runtime", "missing", error.reason, error.next_step)
    wanted = f"llama.cpp {pin().llama_cpp_commit}, patch {patch_id()}, ABI {pin().abi}"
    if found.problem is not None and found.origin == "installed":
        return Finding("runtime", "missing", f"{found.root} {found.problem.reason}", found.problem.next_step)
    if not found.ready:
        detail = f"not built ({wanted}, in {cache_dir()}); needed to run, serve and measure models"
        return Finding("runtime", "missing", detail, "shareatt-export runtime build")
    amx = ", AMX switched off" if found.built["amx_disabled"] else ""
    built = f"llama.cpp {found.built['llama_cpp']}, patch {found.built.get('patch')}, ABI {found.built['abi']}{amx}"
    return Finding("runtime", "ok", f"{found.origin}: {built}, in {found.bin}")


def _devices() -> list[Finding]:
    """Find the GPUs that the runtime sees."""
    if not _is_ready():
        return []
    try:
        found = devices()
    except RuntimeProblem as error:
        return [Finding("GPU", "information", f"the runtime cannot look for devices: {error}")]
    if not found:
        return [Finding("GPU", "information", "the runtime sees none; 'runtime build --backend' builds it for one")]
    return [Finding("GPU", "ok", f"{device.name}: {device.description}") for device in found]


def _unpatched() -> Finding:
    unpatched = partial(built_status, patched=False)
    if _is_ready(unpatched):
        return Finding("unpatched llama.cpp", "ok", str(unpatched().bin))
    detail = "not built; only `bench` needs it: shareatt-export runtime build --unpatched"
    return Finding("unpatched llama.cpp", "information", detail)


def platform_note() -> str | None:
    """Return a sentence on what does not work on this operating system; None if everything does."""
    if sys.platform == "win32":
        return "The runtime cannot be built on Windows yet; use WSL."
    return None
