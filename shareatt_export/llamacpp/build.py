"""Build the runtime: the patched llama.cpp, its tools and its Python bindings, in the user's cache folder.

build()    # about 8 minutes on two cores; returns at once if the runtime is ready
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import RuntimeProblem
from ..system import child_process, operating_system
from ..system.progress import Step, silent
from .build_options import remember, remembered
from .pin import patch_id, pin
from .runtime import (
    CMAKE_OPTIONS,
    RuntimeStatus,
    built_status,
    cmake_arguments,
    cmake_targets,
    options_of,
    require_built,
)
from .source import cache_dir, copy_source, pip, private_cache, sdist_dir, stock_source

BINDINGS_NEED = ("typing-extensions", "diskcache", "jinja2", "markupsafe")  # this package needs numpy itself
LOCK = "lock"  # the file of a folder of the cache that a build in it locks

# ggml's AMX code kills the program with some compilers and virtual machines. Then ggml alone is compiled again
# without it: CMake includes a file with this line at ggml's own project().
NO_AMX = "add_compile_options(-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)\n"


def build(
    patched: bool = True,
    llama_cpp: Path | None = None,
    progress: Step = silent,
    options: Sequence[str] | None = None,
) -> RuntimeStatus:
    """Build what is missing and return the ready runtime. Raises RuntimeProblem.

    A call after an interrupted build goes on with it. `patched=False` builds the library of the same source without
    the patch, to compare with, for the same devices as the runtime. `llama_cpp` is a checkout to build instead of the
    pinned source; it is copied, never changed. `options` are more arguments of CMake (build_options.py); None takes
    those of the last build.
    """
    runtime = built_status(patched)
    wanted = str(llama_cpp.resolve()) if llama_cpp else f"{pin().package}=={pin().version}"
    if not patched:
        options = options_of(require_built())
    elif options is None:
        options = remembered()
    with locked(runtime.root):
        runtime = built_status(patched)
        same = runtime.ready and runtime.built["source"] == wanted and options_of(runtime) == tuple(options)
        if same and llama_cpp is None:
            return runtime
        if patched:
            remember(options)
        _prepare_source(runtime, llama_cpp, wanted, patched, progress)
        _prepare_options(runtime, options)
        no_amx = not patched and bool(require_built().built["amx_disabled"])
        compile_source(runtime.root, cmake_targets(patched), no_amx, progress, options=options)
        if patched:
            no_amx = _install_and_test(runtime, options, progress)
        record = {
            "llama_cpp": pin().llama_cpp_commit if llama_cpp is None else "of your own",
            "source": wanted,
            "patch": patch_id() if patched else None,
            "abi": pin().abi if patched else None,
            "amx_disabled": no_amx,
            "cmake": cmake_arguments(patched),
            "options": list(options),
        }
        _write_record(runtime.root / "runtime.json", record)
    return built_status(patched)


def _prepare_source(runtime: RuntimeStatus, llama_cpp: Path | None, wanted: str, patched: bool, progress: Step) -> None:
    """Copy the source, unless an interrupted build has done so.

    A user's checkout is always copied, because it may have changed. Where the source before was another one, its
    compiled objects are removed: CMake compares times, and files of the new source may be older than those objects.
    """
    note = runtime.root / "source.txt"
    same_source = note.is_file() and note.read_text() == wanted
    if same_source and llama_cpp is None and runtime.source.is_dir():
        return
    progress("fetching the source", None)
    copy_source(runtime.source, llama_cpp, patched)
    (runtime.root / "runtime.json").unlink(missing_ok=True)
    if not same_source:
        shutil.rmtree(runtime.root / "build", ignore_errors=True)
    note.write_text(wanted)


def _prepare_options(runtime: RuntimeStatus, options: Sequence[str]) -> None:
    """Let CMake start anew where the folder was configured with other options, which its cache would keep.

    What is compiled stays; it is compiled again only where its own arguments change.
    """
    note, wanted = runtime.root / "options.txt", "\n".join(options)
    if (note.read_text() if note.is_file() else "") == wanted:
        return
    (runtime.root / "runtime.json").unlink(missing_ok=True)
    (runtime.root / "build" / "CMakeCache.txt").unlink(missing_ok=True)
    shutil.rmtree(runtime.bin, ignore_errors=True)  # libraries of other backends
    note.write_text(wanted)


def _install_and_test(runtime: RuntimeStatus, options: Sequence[str], progress: Step) -> bool:
    """Install the bindings and try a q8_0 model; if it crashes, compile without AMX and try again.

    Returns whether AMX is off.
    """
    if not (runtime.python / "llama_cpp").is_dir():
        progress("installing the bindings", None)
        _install_bindings(runtime.python)
    progress("trying a q8_0 model", None)
    exit_status = _run_smoke_test(runtime)
    no_amx = exit_status < 0
    if no_amx:
        progress(f"it died of signal {-exit_status}; compiling ggml again without AMX", None)
        compile_source(runtime.root, cmake_targets(patched=True), no_amx, progress, options=options)
        exit_status = _run_smoke_test(runtime)
    if exit_status:
        reason = f"fails its first model (status {exit_status})"
        raise RuntimeProblem(reason, path=runtime.bin, next_step=f"see {runtime.root}/smoke.log")
    return no_amx


class Busy(RuntimeProblem):
    """Another process builds in the folder."""


@contextmanager
def locked(root: Path, wait: bool = True) -> Iterator[None]:
    """Make the folder `root` of the cache and let one process build in it; a second one waits for the first.

    Raises RuntimeProblem on Windows, or if others can write to the cache; Busy if it is not to wait.
    """
    if sys.platform == "win32":
        raise RuntimeProblem("the runtime cannot be built on Windows yet", next_step="use WSL")
    private_cache()
    root.mkdir(exist_ok=True)
    with (root / LOCK).open("w") as file:
        try:
            operating_system.lock(file.fileno(), wait)
        except BlockingIOError:
            raise Busy("another process builds here", path=root, next_step="wait for its end") from None
        yield


def _write_record(path: Path, record: Mapping[str, object]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    temporary.replace(path)


def find_program(name: str) -> str | None:
    """Find a program on PATH, or beside this interpreter, where pip puts cmake and ninja."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def compile_source(
    root: Path,
    targets: tuple[str, ...],
    no_amx: bool,
    progress: Step,
    build: str = "build",
    options: Sequence[str] = (),
) -> None:
    """Build the CMake targets of the source `root`/llama.cpp in the folder `root`/`build`.

    `options` are added to CMAKE_OPTIONS. Raises RuntimeProblem with the first error of the build.
    """
    if not (cmake := find_program("cmake")):
        raise RuntimeProblem(
            "cmake is needed to build llama.cpp", next_step="install it, or pip install 'shareatt-export[build]'"
        )
    configure = [cmake, "-S", str(root / "llama.cpp"), "-B", str(root / build), *CMAKE_OPTIONS, *options]
    if ninja := find_program("ninja"):
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    configure += compiler_options(root, no_amx)
    jobs = str(os.cpu_count() or 2)
    with (root / f"{build}.log").open("w") as log:
        progress("configuring", None)
        run_logged(configure, log.name, progress)
        run_logged([cmake, "--build", str(root / build), "-j", jobs, "--target", *targets], log.name, progress)


def compiler_options(folder: Path, no_amx: bool) -> list[str]:
    """Return CMake's options for ccache and for AMX; writes the file that one of them names into `folder`."""
    include = folder / "no-amx.cmake"
    include.write_text(NO_AMX if no_amx else "")
    options = [f"-DCMAKE_PROJECT_ggml_INCLUDE={include}"]
    if find_program("ccache"):
        options += ["-DCMAKE_C_COMPILER_LAUNCHER=ccache", "-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"]
    return options


def run_logged(command: list[str], log_path: str, progress: Step, env: Mapping[str, str] | None = None) -> None:
    """Run a build, append its output to the log, and report CMake's percentages to `progress`.

    Raises RuntimeProblem with the first error of the output.
    """
    # With these ccache shares objects between the trees (patched, unpatched, the next patch) in different folders.
    env = os.environ | {"CCACHE_BASEDIR": str(cache_dir()), "CCACHE_NOHASHDIR": "1"} | dict(env or {})
    errors: list[str] = []
    with Path(log_path).open("a") as log:

        def read_line(line: str) -> None:
            log.write(line)
            if step := re.match(r" *\[ *(\d+)(?:/(\d+)|%)\]", line):
                progress("compiling", int(step[1]) / int(step[2] or 100))
            elif re.search(r"\berror\b", line, re.IGNORECASE):
                errors.append(line.strip())

        status = child_process.run(command, read_line, env=env)
    if status:
        reason = errors[0] if errors else f"status {status}"
        raise RuntimeProblem(reason, field=f"{Path(command[0]).name} failed", next_step=f"the whole log is {log_path}")


def _install_bindings(target: Path) -> None:
    """Install llama-cpp-python, without its own build of llama.cpp, and what it imports into the folder `target`."""
    stock_source()
    env = {"CMAKE_ARGS": "-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF"}
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".python-") as folder:
        work = Path(folder) / "python"
        pip(["install", "--no-deps", "--target", str(work), str(sdist_dir())], env)
        pip(["install", "--no-deps", "--target", str(work), *BINDINGS_NEED])
        shutil.rmtree(target, ignore_errors=True)
        work.replace(target)


def _run_smoke_test(runtime: RuntimeStatus) -> int:
    """Run a small q8_0 model in a child process; return its exit status, or minus the signal that killed it."""
    command = [sys.executable, "-m", "shareatt_export.llamacpp.smoke_test", str(runtime.python), str(runtime.bin)]
    with (runtime.root / "smoke.log").open("w") as log:
        try:
            with child_process.started(command, stdout=log, stderr=log) as child:
                return int(child.wait(timeout=300))
        except subprocess.TimeoutExpired:
            raise RuntimeProblem(
                "its first model does not end", path=runtime.bin, next_step=f"see {log.name}"
            ) from None
