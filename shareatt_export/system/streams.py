"""Read, write, hash and sync files in chunks, so that memory does not grow with the size of a file."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

from .operating_system import sync_file
from .signals import HeldSignals

CHUNK = 1 << 18  # what is written and read back stays in the L2 cache of a core

Advance = Callable[[int], None]  # told the number of bytes that were just processed


def nothing(n_bytes: int) -> None:
    """Ignore the progress: an Advance for callers that do not show it."""


class Inputs(ExitStack):
    """Input files; each is opened once and stays open until the end of the block."""

    def __init__(self) -> None:
        super().__init__()
        self._files: dict[Path, FileIO] = {}

    def open(self, path: Path) -> FileIO:
        """Return the unbuffered file at `path`, which the block closes."""
        if path not in self._files:
            self._files[path] = self.enter_context(path.open("rb", buffering=0))
        return self._files[path]


class Writeback(ThreadPoolExecutor):
    """Syncs files on a thread while they are still being written, so that less is left to sync at the end."""

    def __init__(self) -> None:
        super().__init__(1)
        self._last: Future[None] | None = None

    def begin(self, path: Path) -> None:
        """Start to sync the file unless the last sync is still running. Raises the OSError of the last sync."""
        if self._last is None or self._last.done():
            self.finish()
            self._last = self.submit(sync_file, path)

    def finish(self) -> None:
        """Wait for the last sync. Raises its OSError."""
        if self._last is not None:
            with HeldSignals():
                self._last.result()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for chunk in read_range(file, 0, path.stat().st_size):
            digest.update(chunk)
    return digest.hexdigest()


def read_range(source: FileIO, offset: int, n_bytes: int, unit: int = 1) -> Iterator[bytearray | bytes]:
    """Yield `n_bytes` of a file in chunks that hold whole units of `unit` bytes.

    The next chunk overwrites the one before. There are fewer bytes only if the file ends earlier.
    """
    source.seek(offset)
    buffer = bytearray(min(CHUNK // unit * unit, n_bytes))
    while n_bytes > 0:
        wanted, n_read = memoryview(buffer)[:n_bytes], 0
        while n_read < len(wanted) and (n := source.readinto(wanted[n_read:])):
            n_read += n
        if not n_read:
            return
        n_bytes -= n_read
        yield buffer if n_read == len(buffer) else bytes(memoryview(buffer)[:n_read])


def write_at(file: FileIO, offset: int, data: bytes | bytearray) -> None:
    """Write all of `data` at `offset`; one call of FileIO.write may write less."""
    file.seek(offset)
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[file.write(remaining) :]
