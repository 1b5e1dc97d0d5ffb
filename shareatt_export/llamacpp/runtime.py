"""Find the runtime: the patched llama.cpp, its programs and its Python bindings.

status().ready
tool("llama-cli")  # the path of a program

An installed runtime is the package shareatt_export_runtime, which scripts/build_runtime_wheels.py makes. Without it,
the runtime is the one that `runtime build` builds in the user's cache folder.
"""

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ..errors import RuntimeProblem
from ..system.operating_system import program
from .pin import patch_id, pin
from .source import cache_dir, stock_source

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


# environment variables of the patched llama.cpp: bytes for attention weights; 1 for our kernels in a dense model, too
P_BYTES, DENSE_KERNELS = "LLAMA_SHARED_ATTN_P_BYTES", "LLAMA_SHARED_ATTN_DENSE"
INSTALLED_PACKAGE = "shareatt_export_runtime"


@dataclass(frozen=True)
class RuntimeStatus:
    """A runtime and its folder, where pip has installed it or where a build puts it.

    `built` is what its build recorded in runtime.json; it is empty if there is no build. `problem` says why it cannot
    be used and what to do; None if it can be used.
    """

    root: Path
    origin: Literal["installed", "built"]
    built: dict[str, object]
    problem: RuntimeProblem | None = None

    @property
    def ready(self) -> bool:
        """Whether it can be used."""
        return self.problem is None

    @property
    def source(self) -> Path:
        """The folder of llama.cpp's source; of an installed runtime, the converter and what it imports."""
        return self.root / "llama.cpp"

    @property
    def bin(self) -> Path:
        """The folder of the programs and the libraries."""
        return self.root / "bin" if self.origin == "installed" else self.root / "build" / "bin"

    @property
    def python(self) -> Path:
        """The folder of the Python bindings, for sys.path."""
        return self.root / "python"


def status() -> RuntimeStatus:
    """Return the runtime that is in use: the installed one if there is one, else the built one.

    An installed runtime that does not fit this version is returned with its `problem`: a built one never replaces it
    silently.
    """
    spec = find_spec(INSTALLED_PACKAGE)
    if spec is None or spec.origin is None:
        return built_status()
    return _installed_status(Path(spec.origin).parent)


def _installed_status(root: Path) -> RuntimeStatus:
    record = _read_record(root)
    found, wanted = (record.get("patch"), record.get("abi")), (patch_id(), pin().abi)
    if found == wanted:
        return RuntimeStatus(root, "installed", record)
    problem = RuntimeProblem(
        f"has patch {found[0]} with ABI {found[1]}, and this version needs patch {wanted[0]} with ABI {wanted[1]}",
        path=root,
        next_step="install the shareatt-export-runtime of this version, or "
        "'pip uninstall shareatt-export-runtime' and 'shareatt-export runtime build'",
    )
    return RuntimeStatus(root, "installed", record, problem)


def built_status(patched: bool = True) -> RuntimeStatus:
    """Return the runtime in the user's cache folder, or the unpatched library."""
    root = cache_dir() / (f"runtime-{patch_id()}" if patched else f"unpatched-{pin().llama_cpp_commit}")
    record = _read_record(root)
    complete = record.keys() >= {"llama_cpp", "source", "abi", "amx_disabled"}
    if complete and record.get("cmake") == cmake_arguments(patched):  # an earlier version asked CMake for less
        return RuntimeStatus(root, "built", record)
    what, option = ("llama.cpp with Shared Attention", "") if patched else ("the unpatched llama.cpp", " --unpatched")
    command = f"shareatt-export runtime build{option}"
    return RuntimeStatus(root, "built", {}, RuntimeProblem(f"{what} is not built yet", next_step=f"run '{command}'"))


def _read_record(root: Path) -> dict[str, object]:
    try:
        record = json.loads((root / "runtime.json").read_text())
    except (OSError, ValueError):  # there is no file, or the machine went down while it was written
        return {}
    return record if isinstance(record, dict) else {}


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


def require() -> RuntimeStatus:
    """Return the runtime, ready to use. Raises RuntimeProblem, which names the command that brings it."""
    return _ready(status())


def require_built(patched: bool = True) -> RuntimeStatus:
    """Return the built runtime, or the unpatched library, even if an installed one is in use.

    They are for comparisons, because one compiler has made both. Raises RuntimeProblem as require() does.
    """
    return _ready(built_status(patched))


def _ready(runtime: RuntimeStatus) -> RuntimeStatus:
    if runtime.problem is not None:
        raise runtime.problem
    return runtime


def tool(name: str) -> Path:
    """Return the path of a program of the runtime. Raises RuntimeProblem as require() does."""
    return require().bin / program(name)


def converter(llama_cpp: Path | None = None) -> Path:
    """Return the path of convert_hf_to_gguf.py: of the checkout `llama_cpp`, or of the runtime.

    Downloads the pinned source if no runtime is installed and the cache does not have it. Raises RuntimeProblem.
    """
    installed = llama_cpp is None and status().origin == "installed"
    folder = require().source if installed else stock_source(llama_cpp)
    return folder / "convert_hf_to_gguf.py"
