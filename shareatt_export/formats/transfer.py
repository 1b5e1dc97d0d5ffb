"""Copy tensors on several threads. Each byte of the input is read once, hashed, written, read back and compared."""

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from itertools import accumulate
from pathlib import Path
from threading import Event
from types import MappingProxyType

from blake3 import blake3
from gguf import GGML_QUANT_SIZES

from ..errors import VerifyFailed
from ..system.signals import HeldSignals
from ..system.streams import CHUNK, Advance, nothing, read_range, write_at
from .finite import check_finite
from .gguf_header import TensorInfo
from .tensor_copies import TensorCopy, raw_rows

TensorWritten = Callable[[Path], object]  # told the file after each tensor

N_THREADS = min(4, os.cpu_count() or 1)


def transfer(
    origins: Iterable[TensorInfo],
    *,
    copies: Mapping[TensorInfo, TensorCopy] = MappingProxyType({}),
    targets: Mapping[str, TensorInfo] = MappingProxyType({}),
    hashes: bool = False,
    advance: Advance = nothing,
    written: TensorWritten = lambda path: None,
    finite: bool = False,
) -> dict[TensorInfo, bytes]:
    """Read the tensors `origins` on several threads, and write the ones that have a copy.

    `copies` maps an origin to its copy, `targets` the name of a copy to its place in the output, whose file must
    exist with its full size. `advance` is told the bytes read, `written` the output file after each tensor.

    Returns the BLAKE3 hash of each origin if `hashes`, else empty digests. Raises BadInput for a NaN or an infinity if
    `finite`, VerifyFailed if an input became shorter or the output does not read back as it was written.
    """
    failed = Event()

    def watched(n_bytes: int) -> None:
        if failed.is_set() or signals.received:
            raise InterruptedError
        advance(n_bytes)

    def transfer_one(info: TensorInfo) -> tuple[TensorInfo, bytes]:
        digest = blake3() if hashes else None
        copy = copies.get(info)
        _transfer_one(info, copy, targets[copy.name] if copy else None, digest, watched, finite)
        if copy:
            written(targets[copy.name].path)
        return info, digest.digest() if digest else b""

    with HeldSignals() as signals, ThreadPoolExecutor(N_THREADS) as pool:
        try:
            return dict(pool.map(transfer_one, origins))
        except BaseException:
            failed.set()
            pool.shutdown(cancel_futures=True)
            raise


def _transfer_one(
    info: TensorInfo,
    copy: TensorCopy | None,
    target: TensorInfo | None,
    digest: blake3 | None,
    advance: Advance,
    finite: bool,
) -> None:
    with ExitStack() as files:
        source = files.enter_context(info.path.open("rb", buffering=0))
        out = files.enter_context(target.path.open("r+b", buffering=0)) if target else None
        done, parts = 0, _parts(copy) if copy else []
        for chunk in read_range(source, info.offset, info.n_bytes, GGML_QUANT_SIZES[info.type][1]):
            if done + len(chunk) < info.n_bytes and len(chunk) % GGML_QUANT_SIZES[info.type][1]:
                break  # the file has become shorter
            if finite:
                check_finite(info, done, chunk)
            if digest:
                digest.update(chunk)
            while target and out and parts and parts[-1].first < done + len(chunk):
                part = parts[-1]
                first, end = max(0, part.first - done), part.first + part.n_bytes - done
                kept = chunk[first:end] if first > 0 or end < len(chunk) else chunk  # slices are copies
                _write_compared(out, target, part.place + max(0, done - part.first), kept)
                if end > len(chunk):
                    break  # the rest of it is in the next chunk
                parts.pop()
            done += len(chunk)
            advance(len(chunk))
        if done != info.n_bytes:
            raise VerifyFailed("became shorter while it was copied", path=info.path)
        if copy and copy.recoded and target and out:
            raw = raw_rows(copy).tobytes()
            for first in range(0, len(raw), CHUNK):
                _write_compared(out, target, first, raw[first : first + CHUNK])


@dataclass(frozen=True)
class _Part:
    """Bytes that lie in one piece in the input, from `first` on, and in the output, from `place` on."""

    first: int
    n_bytes: int
    place: int


def _parts(copy: TensorCopy) -> list[_Part]:
    """Return the parts that are copied as bytes, the one that comes first in the input as the last."""
    ranges = [] if copy.recoded else list(copy.ranges())
    places = accumulate((n_bytes for _, n_bytes in ranges), initial=0)
    parts = [_Part(first, n_bytes, place) for (first, n_bytes), place in zip(ranges, places, strict=False)]
    return sorted(parts, key=lambda part: -part.first)


def _write_compared(out: FileIO, target: TensorInfo, offset: int, data: bytes | bytearray) -> None:
    write_at(out, target.offset + offset, data)
    out.seek(target.offset + offset)
    if out.read(len(data)) != data:
        reason = "its bytes differ from those of the dense file"
        raise VerifyFailed(reason, path=target.path, field=f"tensor '{target.name}'")
