"""The llama.cpp source: the pinned one, got with pip by package name, or a checkout of the user's own."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from ..errors import RuntimeProblem
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


def private_cache() -> Path:
    """The cache folder, made for the user alone. Raises RuntimeProblem if others can write what is run from it."""
    folder = cache_dir()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.name == "posix":
        stat, home = folder.stat(), "or set SHAREATT_EXPORT_HOME to a folder of your own"
        if stat.st_uid != os.geteuid():
            raise RuntimeProblem(f"{folder}: belongs to another user; run this as that user, {home}")
        if stat.st_mode & 0o022:
            raise RuntimeProblem(f"{folder}: others can write there; run 'chmod go-w {folder}', {home}")
    return folder


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
    with tempfile.TemporaryDirectory(dir=private_cache(), prefix=".fetch-") as folder:
        work = Path(folder)
        requirement = f"{pin().package}=={pin().version} --hash=sha256:{pin().sdist_sha256}\n"
        (work / "requirements.txt").write_text(requirement)
        command = ["download", "--no-deps", "--no-binary", pin().package, "-d", folder]
        pip([*command, "--require-hashes", "-r", str(work / "requirements.txt")])
        archives = list(work.glob("*.tar.gz"))
        if len(archives) != 1:
            raise RuntimeProblem(f"pip download {pin().package}=={pin().version}: brought no source archive")
        unpack(archives[0], work / "unpacked")
        (unpacked,) = (work / "unpacked").iterdir()
        unpacked.replace(sdist_dir())


def unpack(path: Path, folder: Path) -> None:
    """An archive of files and folders alone. Raises RuntimeProblem, and writes nothing, if it holds anything else."""
    with tarfile.open(path) as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            if not (member.isfile() or member.isdir()) or name.is_absolute() or ".." in name.parts:
                raise RuntimeProblem(f"{path.name}: '{member.name}' is not a file inside of it; nothing was unpacked")
        if hasattr(tarfile, "data_filter"):  # not before Python 3.11.4; keeps modes and owners out
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(folder)  # noqa: S202  (each member was looked at)


def pip(arguments: list[str], env: dict[str, str] | None = None) -> None:
    """Run this interpreter's pip. Raises RuntimeProblem with its last error line."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=os.environ | (env or {}))
    if done.returncode:
        lines = done.stderr.splitlines()
        errors = [line for line in lines if line.lower().startswith("error:")] or lines or ["failed"]
        raise RuntimeProblem(f"pip {arguments[0]}: {re.sub('^error: ', '', errors[-1], flags=re.IGNORECASE)}")


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
