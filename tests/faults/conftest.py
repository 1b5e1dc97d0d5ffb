"""What every refusal must look like."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest


def files(folder: Path) -> dict[str, object]:
    """All that is in a folder, at any depth: what it is, its mode, when it was changed, and what is in it."""
    seen: dict[str, object] = {}
    for path in folder.rglob("*"):
        stat = path.lstat()
        small = path.is_file() and not path.is_symlink() and stat.st_size < 1 << 25
        content = hashlib.sha256(path.read_bytes()).hexdigest() if small else stat.st_size
        seen[str(path.relative_to(folder))] = (stat.st_mode, stat.st_mtime_ns * path.is_file(), content)
    return seen


@pytest.fixture
def refuses(run: Callable[..., object], tmp_path: Path) -> Callable[..., str]:
    """refuses(*arguments): one error line, status 1, and every file is as it was before."""

    def refuses(*arguments: object, status: int = 1) -> str:
        before = files(tmp_path)
        done = run(*arguments)
        assert done.status == status, done
        assert done.stdout == "" and files(tmp_path) == before
        return done.error

    return refuses
