"""Build a wheel of llama-cpp-python with the patch in it, for programs that import llama_cpp without this package."""

import re
import shlex
import shutil
import sys
from pathlib import Path

from ..errors import RuntimeProblem
from ..system.progress import Step, silent
from .build import compiler_options, locked, run_logged
from .pin import patch_id, pin
from .runtime import options_of, require_built
from .source import apply_patch, cache_dir, sdist_dir, stock_source


def version() -> str:
    """Return the wheel's version: llama-cpp-python's with a local part, which tells it from the stock wheel."""
    return f"{pin().version}+shareatt.{patch_id()}"


def build_wheel(folder: Path, progress: Step = silent) -> Path:
    """Build the wheel for this machine's processor, with the backends of the runtime; return its path in `folder`.

    Needs the built runtime, whose build has found out whether AMX works on this machine. Raises RuntimeProblem.
    """
    runtime = require_built()
    no_amx = bool(runtime.built["amx_disabled"])
    if not folder.is_dir():
        raise RuntimeProblem("the folder for the wheel does not exist", path=folder)
    work = cache_dir() / f"wheel-{patch_id()}"  # the path must not change, or ccache would not find its objects
    with locked(work):
        progress("fetching the source", None)
        source, build = _patched_sdist(work / "source"), work / "build"
        shutil.rmtree(build, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "wheel", "-v", "--disable-pip-version-check", "--no-input", "--no-deps"]
        command += ["--config-settings", f"build-dir={build}"]
        progress("configuring", None)
        (work / "build.log").write_text("")
        options = shlex.join(["-DLLAMA_OPENSSL=OFF", *options_of(runtime), *compiler_options(work, no_amx)])
        run_logged([*command, "-w", str(work), str(source)], str(work / "build.log"), progress, {"CMAKE_ARGS": options})
        (built,) = work.glob("*.whl")
        wheel = Path(shutil.move(built, folder / built.name))
        for temporary in (source, build):
            shutil.rmtree(temporary)
    return wheel


def _patched_sdist(tree: Path) -> Path:
    """Make `tree` a copy of llama-cpp-python's source with the patch and our version, and return it."""
    stock_source()
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(sdist_dir(), tree, symlinks=True)
    apply_patch(tree / "vendor" / "llama.cpp")
    module = tree / "llama_cpp" / "__init__.py"
    text, n = re.subn(
        rf'^(__version__ = "){re.escape(pin().version)}"', rf'\g<1>{version()}"', module.read_text(), flags=re.M
    )
    if n != 1:
        raise RuntimeProblem(f"does not say that it is version {pin().version}", path=module)
    module.write_text(text)
    return tree
