"""Carry out a plan: headers first, then each tensor to where the header of the output says.

Each byte of the input is read once: hashed, written, read back and compared. Memory does not grow with the model.
"""

import hashlib
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from threading import Event

from gguf import GGML_QUANT_SIZES

from .errors import VerifyFailed
from .facts import KEY_SOURCE_SHA256, key_source_layers
from .files import Advance, nothing, read_range, write_at
from .finite import check as check_finite
from .header import Header, TensorInfo, damaged
from .plan import Copy, Plan, with_identity
from .shards import Piece, read_model
from .signals import Held

Written = Callable[[Path], object]
N_THREADS = min(4, os.cpu_count() or 1)


def identity(header: Header, advance: Advance = nothing) -> str:
    """Identity of a dense model's weights: SHA-256 over name, type, shape and SHA-256 of every tensor, in order.

    An SA file knows that of the model it was made from.
    """
    if (known := _known_identity(header)) is not None:
        return known
    digests = transfer(header.tensors.values(), {}, {}, True, advance)
    return _identity(header, digests)


def _known_identity(header: Header) -> str | None:
    shared = key_source_layers(header.text("general.architecture")) in header.metadata
    if not shared or KEY_SOURCE_SHA256 not in header.metadata:
        return None
    if not re.fullmatch("[0-9a-f]{64}", known := header.text(KEY_SOURCE_SHA256)):
        raise damaged(header.path, KEY_SOURCE_SHA256, "expected 64 hexadecimal digits")
    return known


def _identity(header: Header, digests: Mapping[TensorInfo, bytes]) -> str:
    digest = hashlib.sha256()
    for info in header.tensors.values():
        name = info.name.encode()
        digest.update(struct.pack(f"<Q{len(name)}sI{len(info.shape)}Q", len(name), name, info.type, *info.shape))
        digest.update(digests[info])
    return digest.hexdigest()


def write_plan(
    plan: Plan,
    paths: Sequence[Path],
    max_bytes: int | None,
    advance: Advance = nothing,
    written: Written = lambda path: None,
    finite: bool = True,
) -> Plan:
    """Write the files of a plan; the plan with the identity of its input, which only reading all of it can tell.

    `advance` is told of plan.weight_bytes_before bytes, `written` of a file after each tensor.
    Raises VerifyFailed where a byte is not what it should be, and if all must be `finite`, BadInput where one is not.
    """
    known = _known_identity(plan.dense)
    fitted = {copy.origin for copy in plan.tensors} - set(plan.dense.tensors.values())
    origins = [*plan.dense.tensors.values(), *fitted]
    digests = _fill(plan.pieces(max_bytes), paths, origins, known is None, advance, written, finite)
    plan = with_identity(plan, known or _identity(plan.dense, digests))
    for piece, path in zip(plan.pieces(max_bytes), paths, strict=True):
        with path.open("r+b") as file:  # as long as before
            file.write(piece.header)
    return plan


def write_pieces(
    made: Sequence[Piece[Copy]],
    paths: Sequence[Path],
    advance: Advance = nothing,
    written: Written = lambda path: None,
) -> None:
    """Write each piece to its path, compared; `advance` is told of tensor bytes."""
    origins = [copy.origin for piece in made for copy in piece.tensors]
    _fill(made, paths, origins, False, advance, written)


def _fill(
    made: Sequence[Piece[Copy]],
    paths: Sequence[Path],
    origins: Iterable[TensorInfo],
    hashes: bool,
    advance: Advance,
    written: Written,
    finite: bool = False,
) -> dict[TensorInfo, bytes]:
    for piece, path in zip(made, paths, strict=True):
        with path.open("wb") as file:
            file.write(piece.header)
            file.truncate(piece.file_size)
    copies = {copy.origin: copy for piece in made for copy in piece.tensors}
    return transfer(origins, copies, read_model(paths[0]).tensors, hashes, advance, written, finite)


def transfer(
    origins: Iterable[TensorInfo],
    copies: Mapping[TensorInfo, Copy],
    targets: Mapping[str, TensorInfo],
    hashes: bool,
    advance: Advance = nothing,
    written: Written = lambda path: None,
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

    with Held() as signals, ThreadPoolExecutor(N_THREADS) as pool:
        try:
            return dict(pool.map(one, origins))
        except BaseException:
            failed.set()
            pool.shutdown(cancel_futures=True)
            raise


def _one(
    info: TensorInfo,
    copy: Copy | None,
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


@contextmanager
def unchanged(files: Iterable[Path]) -> Iterator[None]:
    """Raises VerifyFailed at the end of the block if another program has changed one of the files meanwhile."""
    before = {path: _stamp(path) for path in files}
    yield
    for path, stamp in before.items():
        if _stamp(path) != stamp:
            raise VerifyFailed(f"{path}: was changed by another program while it was copied")


def _stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
