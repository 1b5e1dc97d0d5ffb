"""The llama.cpp source: the pinned one, got with pip by package name, or a checkout of the user's own."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from .errors import RuntimeProblem
from .pin import patch_dir, pin

SOURCE_MARK = Path("src/llama-graph.cpp")


def cache_dir() -> Path:
    """$SHAREATT_EXPORT_HOME, else shareatt-export in the user's cache folder."""
    if home := os.environ.get("SHAREATT_EXPORT_HOME"):
        return Path(home).resolve()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "shareatt-export"
    except RuntimeError:
        raise RuntimeProblem("there is no home folder; set SHAREATT_EXPORT_HOME to a folder for the runtime") from None


def sdist_dir() -> Path:
    return cache_dir() / f"{pin().package}-{pin().version}"


def stock_source(llama_cpp: Path | None = None) -> Path:
    """The unpatched llama.cpp: `llama_cpp` where it is given, else the pinned one, which is fetched if need be."""
    if llama_cpp is not None:
        if not (llama_cpp / SOURCE_MARK).is_file():
            raise RuntimeProblem(f"{llama_cpp}: not a llama.cpp checkout ({SOURCE_MARK} is missing)")
        return llama_cpp.resolve()
    if not sdist_dir().is_dir():
        _fetch_sdist()
    return sdist_dir() / "vendor" / "llama.cpp"


def _fetch_sdist() -> None:
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".fetch-") as folder:
        work = Path(folder)
        requirement = f"{pin().package}=={pin().version} --hash=sha256:{pin().sdist_sha256}\n"
        (work / "requirements.txt").write_text(requirement)
        command = ["download", "--no-deps", "--no-binary", pin().package, "-d", folder]
        pip([*command, "--require-hashes", "-r", str(work / "requirements.txt")])
        archives = list(work.glob("*.tar.gz"))
        if len(archives) != 1:
            raise RuntimeProblem(f"pip download {pin().package}=={pin().version}: brought no source archive")
        with tarfile.open(archives[0]) as archive:
            if hasattr(tarfile, "data_filter"):  # not before Python 3.11.4
                archive.extraction_filter = tarfile.data_filter
            archive.extractall(work / "unpacked")  # noqa: S202  (pip has checked its hash)
        (unpacked,) = (work / "unpacked").iterdir()
        unpacked.replace(sdist_dir())


def pip(arguments: list[str], env: dict[str, str] | None = None) -> None:
    """Run this interpreter's pip. Raises RuntimeProblem with its last error line."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=os.environ | (env or {}))
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
        raise RuntimeProblem(f"pip {arguments[0]}: {errors[-1].removeprefix('ERROR: ') if errors else 'failed'}")


def copy_source(target: Path, llama_cpp: Path | None, patched: bool) -> None:
    """Make `target` a copy of the source, patched or not; only when that has worked is an older one dropped."""
    stock = stock_source(llama_cpp)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".patch-") as folder:
        tree = Path(folder) / "llama.cpp"
        shutil.copytree(stock, tree, symlinks=True, ignore=_not_source)
        if patched:
            apply_patch(tree, check_hashes=llama_cpp is None)
        shutil.rmtree(target, ignore_errors=True)
        tree.replace(target)


def _not_source(folder: str, names: list[str]) -> list[str]:
    """Git's own folder, and builds of the user's (which have a CMakeCache.txt)."""
    return [name for name in names if name == ".git" or (Path(folder) / name / "CMakeCache.txt").is_file()]


def apply_patch(tree: Path, check_hashes: bool = True) -> None:
    """Put the hooks and our own sources into a stock tree. Raises RuntimeProblem if it is not the pinned source.

    Without `check_hashes` (another llama.cpp than the pinned one) git alone judges whether the hooks fit.
    """
    for name, (before, _) in pin().touched.items() if check_hashes else ():
        if _sha256(tree / name) != before:
            commit = pin().llama_cpp_commit
            raise RuntimeProblem(f"{tree / name}: not the pinned llama.cpp {commit}; see cpp_patch/README.md")
    # inside another repository git apply would silently do nothing, unless it is told not to look upwards
    env = os.environ | {"GIT_CEILING_DIRECTORIES": str(tree.resolve().parent)}
    command = ["git", "apply", "--whitespace=nowarn", str((patch_dir() / "hooks.patch").resolve())]
    try:
        done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
    except FileNotFoundError:
        raise RuntimeProblem("git is needed to apply the patch; install git") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise RuntimeProblem(f"{tree}: hooks.patch does not apply: {reason}; see cpp_patch/README.md, 'Moving the pin'")
    for path in sorted((patch_dir() / "src").iterdir()):
        shutil.copy(path, tree / "src" / path.name)
    for name, (_, after) in pin().touched.items() if check_hashes else ():
        if _sha256(tree / name) != after:
            raise RuntimeProblem(f"{tree / name}: hooks.patch did not apply as recorded in PIN.toml")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
