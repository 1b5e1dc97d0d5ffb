"""Remove from the cache what earlier versions of this tool and its tests left there.

Only names that this tool gives are touched. Everything else in the folder, which the user may have chosen with
SHAREATT_EXPORT_HOME, is left alone.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import RuntimeProblem
from .build import LOCK, Busy, locked
from .pin import patch_id, pin
from .source import cache_dir, private_cache

# Names in the cache; the group is what makes one of them that of the current version.
NAMES = (
    r"runtime-(?P<patch>[0-9a-f]{12})",
    r"wheel-(?P<patch>[0-9a-f]{12})(-[a-z]+-\w+)?",
    r"upstream-tests/patched-(?P<patch>[0-9a-f]{12})",
    r"unpatched-(?P<commit>[0-9a-f]{7,40})",
    r"upstream-tests/unpatched-(?P<commit>[0-9a-f]{7,40})",
    r"llama-cpp-python-(?P<version>[\w.+-]+)",
    r"\.fetch-(?P<temporary>\w+)",
    r"build-options\.(?P<choice>json)",
)
CURRENT = "of this version"
TEMPORARY_SECONDS = 86400.0  # a download does not take longer


@dataclass(frozen=True)
class Entry:
    """A file or folder in the cache; `kept` is the reason why it stays, None if it is removed."""

    path: Path
    n_bytes: int
    kept: str | None


def clean(everything: bool = False, dry_run: bool = False) -> list[Entry]:
    """Remove what no version needs that is installed now; with `everything`, also what this version needs.

    Returns what was removed, or would be with `dry_run`, and what was kept. What a running build has locked and what
    is a link stays. Raises RuntimeProblem if the cache is not the user's own, or something cannot be removed.
    """
    if not cache_dir().is_dir():
        return []
    private_cache()
    return [_removed(path, everything, dry_run) for path in sorted(_known())]


def _known() -> Iterator[Path]:
    cache = cache_dir()
    for folder in (cache, cache / "upstream-tests"):
        if folder.is_dir() and not folder.is_symlink():
            yield from (path for path in folder.iterdir() if _match(path))


def _match(path: Path) -> re.Match[str] | None:
    name = path.relative_to(cache_dir()).as_posix()
    return next(filter(None, (re.fullmatch(pattern, name) for pattern in NAMES)), None)


def _removed(path: Path, everything: bool, dry_run: bool) -> Entry:
    """Remove one entry, unless there is a reason to keep it."""
    if path.is_symlink():
        return Entry(path, 0, "a link; remove it by hand")
    entry = Entry(path, _n_bytes(path), None)
    if (reason := _in_use(path)) and not (everything and reason == CURRENT):
        return replace(entry, kept=reason)
    with ExitStack() as stack:
        if (path / LOCK).is_file():
            try:
                stack.enter_context(locked(path, wait=False))
            except Busy:
                return replace(entry, kept="a build uses it")
        if not dry_run:
            _remove(path)
    return entry


def _in_use(path: Path) -> str | None:
    found = _match(path)
    assert found  # noqa: S101
    parts = found.groupdict()
    if "temporary" in parts:
        return "a download may run" if time.time() - path.stat().st_mtime < TEMPORARY_SECONDS else None
    current = {"patch": patch_id(), "commit": pin().llama_cpp_commit, "version": pin().version, "choice": "json"}
    return CURRENT if all(current[part] == value for part, value in parts.items()) else None


def _n_bytes(path: Path) -> int:
    if not path.is_dir():
        return path.lstat().st_size
    files = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    return sum(file.lstat().st_size for file in files)


def _remove(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)  # it removes links in the folder, not what they point to
        else:
            path.unlink()
    except OSError as error:
        reason = f"cannot be removed: {error.strerror}"
        raise RuntimeProblem(reason, path=error.filename or path, next_step="remove it by hand") from None
