"""Carry out a plan: tensors streamed from the files they stand in to the files of the output.

Memory does not grow with the model: tensor bytes go from file to file inside the kernel.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from .errors import VerifyFailed
from .facts import KEY_SOURCE_SHA256, key_source_layers
from .files import Advance, Inputs, copy_range, hash_range, nothing
from .header import Header, pad
from .plan import Copy, Plan, with_identity
from .shards import Piece

Written = Callable[[Path], object]


def identity(header: Header, advance: Advance = nothing) -> str:
    """Identity of a dense model's weights: SHA-256 over name, type, shape and bytes of every tensor, in order.

    An SA file knows that of the model it was made from.
    """
    if {key_source_layers(header.text("general.architecture")), KEY_SOURCE_SHA256} <= header.metadata.keys():
        return header.text(KEY_SOURCE_SHA256)
    digest = hashlib.sha256()
    with Inputs() as inputs:
        for info in header.tensors.values():
            name = info.name.encode()
            digest.update(struct.pack(f"<Q{len(name)}sI{len(info.shape)}Q", len(name), name, info.type, *info.shape))
            hash_range(inputs.open(info.path), info.offset, info.n_bytes, digest, advance)
    return digest.hexdigest()


def write_plan(
    plan: Plan,
    paths: Sequence[Path],
    max_bytes: int | None,
    advance: Advance = nothing,
    written: Written = lambda path: None,
) -> Plan:
    """Write the files of a plan, and hash its input meanwhile; the plan with that identity.

    `advance` is told of plan.weight_bytes_before + plan.weight_bytes_after bytes.
    """
    stop = Event()

    def watched(n_bytes: int) -> None:
        if stop.is_set():
            raise InterruptedError
        advance(n_bytes)

    with ThreadPoolExecutor(1) as pool:
        try:
            hashing = pool.submit(identity, plan.dense, watched)
            write_pieces(plan.pieces(max_bytes), paths, advance, written)
            plan = with_identity(plan, hashing.result())
        finally:
            stop.set()
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
    """Write each piece to its path; `advance` is told of tensor bytes, `written` of the file after each tensor."""
    with Inputs() as inputs:
        for piece, path in zip(made, paths, strict=True):
            with path.open("wb") as file:
                file.write(piece.header)
                for copy in piece.tensors:
                    copy_range(inputs.open(copy.source), copy.source_offset, copy.n_bytes, file, advance)
                    file.write(b"\0" * (pad(copy.n_bytes, piece.alignment) - copy.n_bytes))
                    file.flush()
                    written(path)


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
