"""Copy tensors on several threads: each byte of the input is read once, hashed, written, read back and compared."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from threading import Event

from gguf import GGML_QUANT_SIZES

from ..errors import VerifyFailed
from ..system.signals import HeldSignals
from ..system.streams import Advance, nothing, read_range, write_at
from .finite import check as check_finite
from .gguf_header import TensorInfo
from .tensor_copies import TensorCopy

TensorWritten = Callable[[Path], object]


N_THREADS = min(4, os.cpu_count() or 1)


def transfer(
    origins: Iterable[TensorInfo],
    copies: Mapping[TensorInfo, TensorCopy],
    targets: Mapping[str, TensorInfo],
    hashes: bool,
    advance: Advance = nothing,
    written: TensorWritten = lambda path: None,
    finite: bool = False,
) -> dict[TensorInfo, bytes]:
    """Read tensors, on several threads: write those of `copies` (by origin) to `targets` (by their own name), and
    return the SHA-256 of each if it `hashes`; if all must be `finite`, raise BadInput where one is not."""
    failed = Event()

    def watched(n_bytes: int) -> None:
        if failed.is_set() or signals.came:
            raise InterruptedError
        advance(n_bytes)

    def one(info: TensorInfo) -> tuple[TensorInfo, bytes]:
        digest = hashlib.sha256() if hashes else None
        copy = copies.get(info)
        _one(info, copy, targets[copy.name] if copy else None, digest, watched, finite)
        if copy:
            written(targets[copy.name].path)
        return info, digest.digest() if digest else b""

    with HeldSignals() as signals, ThreadPoolExecutor(N_THREADS) as pool:
        try:
            return dict(pool.map(one, origins))
        except BaseException:
            failed.set()
            pool.shutdown(cancel_futures=True)
            raise


def _one(
    info: TensorInfo,
    copy: TensorCopy | None,
    target: TensorInfo | None,
    digest: "hashlib._Hash | None",
    advance: Advance,
    finite: bool,
) -> None:
    with ExitStack() as files:
        source = files.enter_context(info.path.open("rb", buffering=0))
        out = files.enter_context(target.path.open("r+b", buffering=0)) if target else None
        done = 0
        for chunk in read_range(source, info.offset, info.n_bytes, GGML_QUANT_SIZES[info.type][1]):
            if done + len(chunk) < info.n_bytes and len(chunk) % GGML_QUANT_SIZES[info.type][1]:
                break  # the file has become shorter
            if finite:
                check_finite(info, done, chunk)
            if digest:
                digest.update(chunk)
            if copy and target and out and done + len(chunk) > copy.skipped:
                kept = chunk if done >= copy.skipped else chunk[copy.skipped - done :]
                _put(out, target, max(0, done - copy.skipped), kept)
            done += len(chunk)
            advance(len(chunk))
        if done != info.n_bytes:
            raise VerifyFailed(f"{info.path}: became shorter while it was copied")


def _put(out: FileIO, target: TensorInfo, at: int, data: bytes | bytearray) -> None:
    write_at(out, target.offset + at, data)
    if next(read_range(out, target.offset + at, len(data)), b"") != data:
        raise VerifyFailed(f"{target.path}: tensor '{target.name}': its bytes differ from those of the dense file")
