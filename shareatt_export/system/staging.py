"""Files in and out without harm: outputs appear whole or not at all, inputs are only ever read.

with staged(Path("out.gguf")) as folder:
    (folder / "any name").write_bytes(...)
    publish({folder / "any name": Path("out.gguf")}, inputs=[Path("in.gguf")], force=False)
"""

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputRefused
from .signals import HeldSignals
from .streams import sync

PREFIX = ".shareatt-"  # of folders for files that are not finished
FRESH = 60.0  # seconds in which the owner of such a folder will have locked it


def check_output(path: Path, inputs: Iterable[Path], force: bool) -> None:
    """Raises OutputRefused where writing `path` would destroy something or cannot succeed."""
    if not path.parent.is_dir():
        raise OutputRefused(f"{path}: the folder {path.parent} does not exist")
    if not os.path.lexists(path):
        return
    for source in inputs:
        if path.exists() and path.samefile(source):
            raise OutputRefused(f"{path}: is the input itself; name another output")
    if not path.is_file():
        raise OutputRefused(f"{path}: exists and is not a regular file; name another output")
    if not force:
        raise OutputRefused(f"{path}: exists already; use --force to overwrite it")


@contextmanager
def made_folder(path: Path) -> Iterator[None]:
    """Make a folder and those above it; remove what was made if the block fails and nothing is in it."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputRefused(f"{path}: cannot be made: {error.strerror}; name another folder") from None
    try:
        yield
    except BaseException:
        with suppress(OSError):  # something is in it
            for folder in made:
                folder.rmdir()
        raise


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, to write in what publish() will name; it is gone after the block."""
    work: Path | None = None
    try:
        with private_folder(out.parent) as work:
            yield work
    except OSError as error:
        if work is None:
            where = f"cannot write in {out.parent}: {error.strerror}; name another folder"
            raise OutputRefused(f"{out}: {where}") from None
        if error.filename is not None and not str(error.filename).startswith(str(work)):
            raise  # another file's fault
        raise OutputRefused(f"{out}: cannot be written: {error.strerror}") from None


@contextmanager
def private_folder(near: Path | None) -> Iterator[Path]:
    """A hidden folder in `near`, else among other temporary files, that is gone after the block.

    It is locked for so long. A killed program leaves its folder, but no lock: such folders in `near` are removed first.
    """
    for left in near.glob(f"{PREFIX}*") if near else ():
        _remove_abandoned(left)
    with HeldSignals():  # Python knows of it a moment after it is there
        folder = tempfile.TemporaryDirectory(dir=near, prefix=PREFIX, ignore_cleanup_errors=True)
    lock = os.open(folder.name, os.O_RDONLY)
    try:
        with suppress(OSError):  # where a file system has no locks, no folder is ever taken for abandoned
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield Path(folder.name)
    finally:
        with HeldSignals():
            folder.cleanup()  # which Python does at its end if we do not come here
            os.close(lock)


def _remove_abandoned(path: Path) -> None:
    with suppress(OSError):  # it is another program's, or in use
        if time.time() - path.lstat().st_mtime < FRESH:
            return
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def check_space(path: Path, n_bytes: int) -> None:
    """Raises OutputRefused where files of so many bytes beside `path` would not fit."""
    if n_bytes > (free := shutil.disk_usage(path.parent).free):
        raise OutputRefused(
            f"{path}: needs {n_bytes} bytes, {path.parent} has {free}; make room or name another folder"
        )


def publish(names: Mapping[Path, Path], inputs: Iterable[Path], force: bool) -> None:
    """Give finished files their names. The last goes first, so that a model's first shard comes when all are there.

    Raises OutputRefused where a name may not be taken; then none is, but with `force` those before it.
    """
    for path in names.values():
        check_output(path, inputs, force)
    for temporary, path in names.items():
        sync(temporary)
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
        _sync_folder(parent)


def check_output_folder(path: Path, source: Path, force: bool, mark: str) -> None:
    """check_output() for a folder; only one that has the file `mark`, which says who made it, is ever replaced."""
    if not path.parent.is_dir():
        raise OutputRefused(f"{path}: the folder {path.parent} does not exist")
    if path.resolve().is_relative_to(source.resolve()) or source.resolve().is_relative_to(path.resolve()):
        raise OutputRefused(f"{path}: is the input itself, or within it, or around it; name another folder")
    if not os.path.lexists(path):
        return
    if not force:
        raise OutputRefused(f"{path}: exists already; use --force to replace it")
    if path.is_symlink() or not (path / mark).is_file():
        raise OutputRefused(f"{path}: is not a folder with a {mark}, so --force does not replace it; name another")


def publish_folder(temporary: Path, path: Path, source: Path, force: bool, mark: str) -> None:
    """Give a finished folder its name. What it replaces moves beside `temporary`, into the staging folder."""
    check_output_folder(path, source, force, mark)
    for file in temporary.iterdir():
        sync(file)
    _sync_folder(temporary)
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
    _sync_folder(path.parent)


def write_text(path: Path, text: str, force: bool) -> None:
    """A small file, whole or not at all."""
    with staged(path) as folder:
        (folder / path.name).write_text(text, encoding="utf-8")
        publish({folder / path.name: path}, [], force)


def _sync_folder(path: Path) -> None:
    with suppress(OSError):  # some file systems cannot sync a folder
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _mode(path: Path) -> int:
    """That of the file to be replaced, else what the umask gives a new file."""
    if path.exists():
        return path.stat().st_mode & 0o777
    return 0o666 & ~_umask()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _take_name(temporary: Path, path: Path, force: bool) -> None:
    if force:
        temporary.replace(path)
        return
    try:
        path.hardlink_to(temporary)  # unlike rename, fails where somebody took the name meanwhile
    except FileExistsError:
        raise OutputRefused(f"{path}: was created by another program meanwhile; it is left as it is") from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        check_output(path, [], force)  # a file system without hard links
        temporary.replace(path)
