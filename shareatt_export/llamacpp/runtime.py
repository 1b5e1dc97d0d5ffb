"""Where the runtime is: the patched llama.cpp, its tools and its Python bindings, in the user's cache folder.

status().ready
tool("llama-cli")  # path of a program
"""

import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import RuntimeProblem
from .pin import patch_id, pin
from .source import cache_dir

TOOLS = (
    "llama-cli",
    "llama-server",
    "llama-bench",
    "llama-perplexity",
    "llama-quantize",
    "llama-completion",
    "llama-gguf-split",
    "llama-imatrix",
    "ggml-rpc-server",
)
CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",
    "-DBUILD_SHARED_LIBS=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DGGML_RPC=ON",
)


@dataclass(frozen=True)
class RuntimeStatus:
    """Where the runtime of this version is, or would be."""

    root: Path
    ready: bool
    built: dict[str, object]  # what the build recorded of itself, empty before it ended

    @property
    def source(self) -> Path:
        return self.root / "llama.cpp"

    @property
    def bin(self) -> Path:
        return self.root / "build" / "bin"

    @property
    def python(self) -> Path:
        return self.root / "python"


def status(patched: bool = True) -> RuntimeStatus:
    root = cache_dir() / (f"runtime-{patch_id()}" if patched else f"unpatched-{pin().llama_cpp_commit}")
    try:
        built = json.loads((root / "runtime.json").read_text())
    except (OSError, ValueError):  # not built, or the machine went down while it was written
        built = {}
    ready = isinstance(built, dict) and built.keys() >= {"llama_cpp", "source", "abi", "amx_disabled"}
    ready = ready and built.get("cmake") == recipe(patched)  # else an earlier version built it with less in it
    return RuntimeStatus(root, ready, built if ready else {})


def recipe(patched: bool) -> list[str]:
    """What CMake is asked for; a runtime that was built with another recipe is built again."""
    return [*CMAKE_OPTIONS, *targets(patched)]


def targets(patched: bool) -> tuple[str, ...]:
    """The CMake targets: the library, and the programs of the patched one."""
    return ("llama", *TOOLS) if patched else ("llama",)


def require(patched: bool = True) -> RuntimeStatus:
    """The runtime, ready to use. Raises RuntimeProblem that names the command which builds it."""
    if (runtime := status(patched)).ready:
        return runtime
    if patched:
        raise RuntimeProblem("llama.cpp with Shared Attention is not built yet; run 'shareatt-export runtime build'")
    raise RuntimeProblem("the unpatched llama.cpp is not built yet; run 'shareatt-export runtime build --unpatched'")


def tool(name: str) -> Path:
    return require().bin / name
