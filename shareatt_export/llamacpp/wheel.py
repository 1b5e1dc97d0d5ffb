"""A wheel of llama-cpp-python with the patch in it, for programs that import llama_cpp and know nothing of us."""

import re
import shlex
import shutil
import sys
from pathlib import Path

from ..errors import RuntimeProblem
from ..system.progress import Step, silent
from .build import compiler_options, locked, run_logged
from .pin import patch_id, pin
from .runtime import require
from .source import apply_patch, cache_dir, sdist_dir, stock_source


def version() -> str:
    """llama-cpp-python's with a local part, so that pip and people can tell it from the stock one."""
    return f"{pin().version}+shareatt.{patch_id()}"


def build_wheel(folder: Path, progress: Step = silent) -> Path:
    """Build the wheel, for this machine's processor, into `folder`. Raises RuntimeProblem.

    The runtime must be there, because its build has found out what this processor stands.
    """
    no_amx = bool(require().built["amx_disabled"])
    if not folder.is_dir():
        raise RuntimeProblem(f"{folder}: the folder for the wheel does not exist")
    work = cache_dir() / f"wheel-{patch_id()}"  # always the same place, else the compiler cache would not hit
    with locked(work):
        progress("fetching the source", None)
        source, build = _patched_sdist(work / "source"), work / "build"
        shutil.rmtree(build, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "wheel", "-v", "--disable-pip-version-check", "--no-input", "--no-deps"]
        command += ["--config-settings", f"build-dir={build}"]
        progress("configuring", None)
        (work / "build.log").write_text("")
        options = shlex.join(["-DLLAMA_OPENSSL=OFF", *compiler_options(work, no_amx)])
        run_logged([*command, "-w", str(work), str(source)], str(work / "build.log"), progress, {"CMAKE_ARGS": options})
        (made,) = work.glob("*.whl")
        wheel = Path(shutil.move(made, folder / made.name))
        for used in (source, build):
            shutil.rmtree(used)
    return wheel


def _patched_sdist(tree: Path) -> Path:
    stock_source()
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(sdist_dir(), tree, symlinks=True)
    apply_patch(tree / "vendor" / "llama.cpp")
    module = tree / "llama_cpp" / "__init__.py"
    text, n = re.subn(
        rf'^(__version__ = "){re.escape(pin().version)}"', rf'\g<1>{version()}"', module.read_text(), flags=re.M
    )
    if n != 1:
        raise RuntimeProblem(f"{module}: does not say that it is version {pin().version}")
    module.write_text(text)
    return tree
