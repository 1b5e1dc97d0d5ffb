"""What the operating systems do differently, in functions that mean the same on Linux, macOS and Windows.

Windows has no fcntl and cannot open a folder; it can lock bytes of a file. It replaces no file that a program has open,
and no program by another one. What is written for it has been tried with stand-ins for its functions only.
"""

import errno
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from ..errors import OutputRefused

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

FOLDER_LOCK = "lock"  # the file that stands for its folder on Windows
OPEN_FILES_STAY = sys.platform == "win32"  # a file that is open cannot be removed
# Errors of os.link on a file system without hard links; Windows says EINVAL for FAT.
NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
if sys.platform == "win32":
    NO_HARD_LINKS |= {errno.EINVAL}


def lock(file: int, wait: bool) -> None:
    """Lock an open file until it is closed. Raises BlockingIOError if another process has it and `wait` is false.

    Raises another OSError where the file system has no locks.
    """
    if sys.platform != "win32":
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        while not _lock_byte(file, wait):
            pass


if sys.platform == "win32":

    def _lock_byte(file: int, wait: bool) -> bool:
        """Lock the first byte; return False if another process had it all the ten seconds that LK_LOCK waits."""
        os.lseek(file, 0, os.SEEK_SET)  # locking() begins where the file stands
        try:
            msvcrt.locking(file, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if not wait and error.errno in (errno.EACCES, errno.EDEADLK):
                raise BlockingIOError(error.errno, error.strerror) from None
            if error.errno != errno.EDEADLK:
                raise
            return False
        return True


def open_folder_lock(folder: Path, make: bool) -> int:
    """Open what stands for a folder in lock(), and return its file descriptor. Raises OSError.

    That is the folder itself, or on Windows a file in it, which is made if `make`. A link is no folder.
    """
    if sys.platform != "win32":
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    if folder.is_symlink():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    return os.open(folder / FOLDER_LOCK, os.O_RDWR | (os.O_CREAT if make else 0))


def sync_file(path: Path) -> None:
    """Write the data of the file from the page cache to the disk. Raises OSError."""
    with path.open("rb" if sys.platform != "win32" else "r+b") as file:  # Windows syncs only what may be written
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Write the names in the folder to the disk, where the system can."""
    if sys.platform == "win32":
        return
    with suppress(OSError):  # some file systems cannot sync a folder
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def replace(temporary: Path, path: Path) -> None:
    """Rename a file to a name that may be taken. Raises OutputRefused if Windows keeps it for a program; OSError."""
    try:
        temporary.replace(path)
    except PermissionError:
        if sys.platform != "win32":
            raise
        raise OutputRefused(
            "cannot be replaced", path=path, next_step="close the programs that have it open, or name another output"
        ) from None


def replace_process(command: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Run a program in the place of this process. Raises OSError if it cannot be started.

    On Windows this process waits for it and ends with its exit status, because os.execve returns to the shell at once.
    """
    if sys.platform == "win32":
        sys.exit(subprocess.run(list(command), env=dict(env)).returncode)
    os.execve(command[0], list(command), dict(env))  # noqa: S606


def n_usable_cpus() -> int:
    """Return the number of logical CPUs that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_information() -> str:
    """Return what Linux says of its processors; nothing on other systems."""
    with suppress(OSError):
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return ""


def processor_name() -> str:
    """Return the name that the processor has for people."""
    found = re.search(r"^model name\s*: (.*)$", processor_information(), re.MULTILINE)
    return found[1] if found else platform.processor() or "unknown"


def shared_library(name: str) -> str:
    """Return the file name of a shared library: "ggml-base" is libggml-base.so, libggml-base.dylib, ggml-base.dll."""
    if sys.platform == "win32":
        return f"{name}.dll"
    return f"lib{name}.dylib" if sys.platform == "darwin" else f"lib{name}.so"


def program(name: str) -> str:
    """Return the file name of a program."""
    return f"{name}.exe" if sys.platform == "win32" else name


def others_can_write(folder: Path) -> bool:
    """Return whether users other than this one may write into the folder; on Windows its ACL is not read."""
    return sys.platform != "win32" and bool(folder.stat().st_mode & 0o022)


def is_ours(folder: Path) -> bool:
    """Return whether the folder belongs to this user; on Windows its owner is not read."""
    return sys.platform == "win32" or folder.stat().st_uid == os.geteuid()
