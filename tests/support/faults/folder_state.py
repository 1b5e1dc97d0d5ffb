"""The state of a folder, to see whether a program has changed anything in it."""

import hashlib
from pathlib import Path


def folder_state(folder: Path) -> dict[str, object]:
    """Return the mode, the time of change and the content of each file and folder below `folder`, by relative path.

    The content is the SHA-256, or the size in bytes of a file of 32 MiB or more.
    """
    seen: dict[str, object] = {}
    for path in folder.rglob("*"):
        stat = path.lstat()
        hashed = path.is_file() and not path.is_symlink() and stat.st_size < 1 << 25
        content = hashlib.sha256(path.read_bytes()).hexdigest() if hashed else stat.st_size
        seen[str(path.relative_to(folder))] = (stat.st_mode, stat.st_mtime_ns * path.is_file(), content)
    return seen
