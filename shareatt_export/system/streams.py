"""Read, write, hash and sync files in chunks, so that memory does not grow with the size of a file."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

from .signals import HeldSignals

CHUNK = 1 << 20  # small enough for the cache of a processor


Advance = Callable[[int], None]  # told the number of bytes just done


def nothing(n_bytes: int) -> None:
    """An Advance for callers who do not watch."""


class Inputs(ExitStack):
    """Files to read from, each opened once and closed with the block."""

    def __init__(self) -> None:
        super().__init__()
        self._files: dict[Path, FileIO] = {}

    def open(self, path: Path) -> FileIO:
        if path not in self._files:
            self._files[path] = self.enter_context(path.open("rb", buffering=0))
        return self._files[path]


class Writeback(ThreadPoolExecutor):
    """Lets the disk begin while a program still works: syncs what is there of a file so far, one at a time."""

    def __init__(self) -> None:
        super().__init__(1)
        self._last: Future[None] | None = None

    def begin(self, path: Path) -> None:
        """Nothing, if the last sync is still under way. Raises its OSError."""
        if self._last is None or self._last.done():
            self.finish()
            self._last = self.submit(sync, path)

    def finish(self) -> None:
        if self._last is not None:
            with HeldSignals():
                self._last.result()


def sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        for chunk in read_range(file, 0, path.stat().st_size):
            digest.update(chunk)
    return digest.hexdigest()


def read_range(source: FileIO, offset: int, n_bytes: int, unit: int = 1) -> Iterator[bytearray | bytes]:
    """The bytes in chunks of whole units, each good until the next is asked for; fewer only if the file is shorter."""
    source.seek(offset)
    buffer = bytearray(min(CHUNK // unit * unit, n_bytes))
    while n_bytes > 0:
        wanted, got = memoryview(buffer)[:n_bytes], 0
        while got < len(wanted) and (n := source.readinto(wanted[got:])):
            got += n
        if not got:
            return
        n_bytes -= got
        yield buffer if got == len(buffer) else bytes(memoryview(buffer)[:got])


def write_at(file: FileIO, offset: int, data: bytes | bytearray) -> None:
    file.seek(offset)
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
