"""Write outputs safely: a file appears complete or not at all, and inputs are never changed.

with staged(Path("out.gguf")) as folder:
    (folder / "any name").write_bytes(...)
    publish({folder / "any name": Path("out.gguf")}, inputs=[Path("in.gguf")], force=False)
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputRefused
from . import operating_system
from .operating_system import sync_file, sync_folder
from .signals import HeldSignals

PREFIX = ".shareatt-"  # of the names of folders that hold unfinished files
FRESH = 60.0  # seconds; the program that makes such a folder locks it within this time


def check_output(path: Path, inputs: Iterable[Path], force: bool) -> None:
    """Raise OutputRefused if writing `path` would destroy an input or a file, or cannot succeed."""
    if not path.parent.is_dir():
        raise OutputRefused(f"the folder {path.parent} does not exist", path=path)
    if not os.path.lexists(path):
        return
    for source in inputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise OutputRefused("is the input itself", path=path, next_step="name another output")
    if not path.is_file():
        raise OutputRefused("exists and is not a regular file", path=path, next_step="name another output")
    if not force:
        raise OutputRefused("exists already", path=path, next_step="use --force to overwrite it")


@contextmanager
def made_folder(path: Path) -> Iterator[None]:
    """Make a folder and its parents; if the block fails, remove the new folders that are empty.

    Raises OutputRefused if the folder cannot be made.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot be made: {error.strerror}"
        raise OutputRefused(reason, path=path, next_step="name another folder") from None
    try:
        yield
    except BaseException:
        with suppress(OSError):  # a folder that is not empty stays
            for folder in made:
                folder.rmdir()
        raise


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Make a hidden folder beside `out` for the files that publish() will name; the block removes it.

    Raises OutputRefused if the folder or a file in it cannot be written.
    """
    work: Path | None = None
    try:
        with private_folder(out.parent) as work:
            yield work
    except OSError as error:
        if work is None:
            reason = f"cannot write in {out.parent}: {error.strerror}"
            raise OutputRefused(reason, path=out, next_step="name another folder") from None
        if error.filename is not None and not str(error.filename).startswith(str(work)):
            raise  # the error is about another file
        raise OutputRefused(f"cannot be written: {error.strerror}", path=out) from None


@contextmanager
def private_folder(near: Path | None) -> Iterator[Path]:
    """Make a hidden folder in `near`, or in the system's temporary folder if that is None; the block removes it.

    The folder is locked until then. A killed program leaves its folder without a lock; such folders in `near` are
    removed first.
    """
    for abandoned in near.glob(f"{PREFIX}*") if near else ():
        _remove_abandoned(abandoned)
    with HeldSignals():  # the folder exists a moment before Python knows that it must remove it
        folder = tempfile.TemporaryDirectory(dir=near, prefix=PREFIX, ignore_cleanup_errors=True)
    lock = operating_system.open_folder_lock(Path(folder.name), make=True)
    try:
        with suppress(OSError):  # without locks in the file system, no folder is ever removed as abandoned
            operating_system.lock(lock, wait=False)
        yield Path(folder.name)
    finally:
        with HeldSignals():
            if operating_system.OPEN_FILES_STAY:
                os.close(lock)
            folder.cleanup()  # Python does it at exit if this line is not reached
            if not operating_system.OPEN_FILES_STAY:
                os.close(lock)


def _remove_abandoned(path: Path) -> None:
    with suppress(OSError):  # the folder belongs to another user, or is in use
        if time.time() - path.lstat().st_mtime < FRESH:
            return
        lock = operating_system.open_folder_lock(path, make=False)
        try:
            operating_system.lock(lock, wait=False)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def check_space(path: Path, n_bytes: int, next_step: str = "make room or name another folder") -> None:
    """Raise OutputRefused if the file system of `path` has less than `n_bytes` of free space."""
    if n_bytes > (free := shutil.disk_usage(path.parent).free):
        reason = f"needs {n_bytes} bytes, {path.parent} has {free}"
        raise OutputRefused(reason, path=path, next_step=next_step)


def publish(names: Mapping[Path, Path], inputs: Iterable[Path], force: bool) -> None:
    """Rename finished files to their final names, the last file first, so that a model's first shard appears last.

    `names` maps temporary to final paths. Raises OutputRefused if a name is taken; then no file is published, except
    with `force`, where the files that were renamed before stay.
    """
    for path in names.values():
        check_output(path, inputs, force)
    for temporary, path in names.items():
        sync_file(temporary)
        temporary.chmod(_mode(path))
    taken: list[Path] = []
    with HeldSignals():
        try:
            for temporary, path in reversed(list(names.items())):
                _take_name(temporary, path, force)
                taken.append(path)
        except BaseException:
            for path in taken if not force else ():
                path.unlink(missing_ok=True)
            raise
    for parent in {path.parent for path in names.values()}:
        sync_folder(parent)


def check_output_folder(path: Path, source: Path, force: bool, mark: str) -> None:
    """Raise OutputRefused if the folder `path` cannot be made, or may not be replaced.

    With `force`, only a folder is replaced that has the file `mark`, which this tool writes into its folders.
    """
    if not path.parent.is_dir():
        raise OutputRefused(f"the folder {path.parent} does not exist", path=path)
    if path.resolve().is_relative_to(source.resolve()) or source.resolve().is_relative_to(path.resolve()):
        raise OutputRefused("is the input, is inside it or contains it", path=path, next_step="name another folder")
    if not os.path.lexists(path):
        return
    if not force:
        raise OutputRefused("exists already", path=path, next_step="use --force to replace it")
    if path.is_symlink() or not (path / mark).is_file():
        reason = f"is not a folder with a {mark}, so --force does not replace it"
        raise OutputRefused(reason, path=path, next_step="name another")


def publish_folder(temporary: Path, path: Path, source: Path, force: bool, mark: str) -> None:
    """Rename a finished folder to `path`. A folder that it replaces moves into the staging folder, beside `temporary`.

    Raises OutputRefused as check_output_folder() does.
    """
    check_output_folder(path, source, force, mark)
    for file in temporary.iterdir():
        sync_file(file)
    sync_folder(temporary)
    temporary.chmod(0o777 & ~_umask())
    before = temporary.with_name(f"{temporary.name}.before")
    with HeldSignals():
        if os.path.lexists(path):
            path.rename(before)
        try:
            temporary.rename(path)
        except OSError:
            if before.is_dir():
                before.rename(path)
            raise
    sync_folder(path.parent)


def write_text(path: Path, text: str, force: bool) -> None:
    """Write a small text file, complete or not at all, with its line ends as they are.

    Raises OutputRefused as check_output() does.
    """
    with staged(path) as folder:
        (folder / path.name).write_text(text, encoding="utf-8", newline="")
        publish({folder / path.name: path}, [], force)


def _mode(path: Path) -> int:
    """Return the permissions of the file that will be replaced, else the ones that the umask gives a new file."""
    if path.exists():
        return path.stat().st_mode & 0o777
    return 0o666 & ~_umask()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _take_name(temporary: Path, path: Path, force: bool) -> None:
    if force:
        operating_system.replace(temporary, path)
        return
    try:
        path.hardlink_to(temporary)  # unlike a rename, it fails if another program took the name meanwhile
    except FileExistsError:
        reason = "was created by another program meanwhile; it is left as it is"
        raise OutputRefused(reason, path=path) from None
    except OSError as error:
        if error.errno not in operating_system.NO_HARD_LINKS:
            raise
        check_output(path, [], force)  # a file system without hard links
        operating_system.replace(temporary, path)
