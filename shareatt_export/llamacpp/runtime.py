"""Find the runtime: the patched llama.cpp, its programs and its Python bindings, in the user's cache folder.

status().ready
tool("llama-cli")  # the path of a program
"""

import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import RuntimeProblem
from ..system.operating_system import program
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
    """The folder of the runtime of this version, and whether a build has filled it.

    `built` is what the build recorded in runtime.json; it is empty unless `ready`.
    """

    root: Path
    ready: bool
    built: dict[str, object]

    @property
    def source(self) -> Path:
        """The folder of llama.cpp's source."""
        return self.root / "llama.cpp"

    @property
    def bin(self) -> Path:
        """The folder of the programs and the libraries."""
        return self.root / "build" / "bin"

    @property
    def python(self) -> Path:
        """The folder of the Python bindings, for sys.path."""
        return self.root / "python"


def status(patched: bool = True) -> RuntimeStatus:
    """Return where the runtime is, or the unpatched library, and whether it is ready to use."""
    root = cache_dir() / (f"runtime-{patch_id()}" if patched else f"unpatched-{pin().llama_cpp_commit}")
    try:
        built = json.loads((root / "runtime.json").read_text())
    except (OSError, ValueError):  # there is no file, or the machine went down while it was written
        built = {}
    ready = isinstance(built, dict) and built.keys() >= {"llama_cpp", "source", "abi", "amx_disabled"}
    ready = ready and built.get("cmake") == cmake_arguments(patched)  # an earlier version asked CMake for less
    return RuntimeStatus(root, ready, built if ready else {})


def options_of(runtime: RuntimeStatus) -> tuple[str, ...]:
    """Return the arguments of CMake that the user chose for this build: its backends, and options of his own."""
    options = runtime.built.get("options", [])
    return tuple(map(str, options)) if isinstance(options, list) else ()


def cmake_arguments(patched: bool) -> list[str]:
    """Return the options and the targets that a build gives to CMake.

    The build records them; a runtime that was built with others is not ready, and build() makes it again.
    """
    return [*CMAKE_OPTIONS, *cmake_targets(patched)]


def cmake_targets(patched: bool) -> tuple[str, ...]:
    """Return the names of the CMake targets: the library, and with the patch the programs too."""
    return ("llama", *TOOLS) if patched else ("llama",)


def require(patched: bool = True) -> RuntimeStatus:
    """Return the runtime, ready to use. Raises RuntimeProblem, which names the command that builds it."""
    if (runtime := status(patched)).ready:
        return runtime
    if patched:
        command = "shareatt-export runtime build"
        raise RuntimeProblem("llama.cpp with Shared Attention is not built yet", next_step=f"run '{command}'")
    command = "shareatt-export runtime build --unpatched"
    raise RuntimeProblem("the unpatched llama.cpp is not built yet", next_step=f"run '{command}'")


def tool(name: str) -> Path:
    """Return the path of a program of the runtime. Raises RuntimeProblem as require() does."""
    return require().bin / program(name)
