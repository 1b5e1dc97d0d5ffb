"""Write the files of a plan: their headers first, then each tensor at the offset that its header gives.

Each byte of the input is read once: hashed, written, read back and compared. Memory does not grow with the model.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import VerifyFailed
from ..formats.gguf_header import TensorInfo
from ..formats.identity import combined_blake3, recorded_blake3
from ..formats.shards import Piece, read_model
from ..formats.tensor_copies import TensorCopy
from ..formats.transfer import TensorWritten, transfer
from ..plan.plan import Plan, with_identity
from ..system.streams import Advance, nothing


def write_plan(
    plan: Plan,
    paths: Sequence[Path],
    max_bytes: int | None,
    advance: Advance = nothing,
    written: TensorWritten = lambda path: None,
    finite: bool = True,
) -> Plan:
    """Write the files of a plan. Return the plan with the hash of its input, which is known after reading it.

    `advance` is told of plan.weight_bytes_before bytes in all, `written` of the file after each tensor.
    Raises VerifyFailed if a written byte differs, and if `finite`, BadInput if a weight is NaN or infinite.
    """
    known = recorded_blake3(plan.dense)
    fitted = {copy.origin for copy in plan.tensors} - set(plan.dense.tensors.values())
    origins = [*plan.dense.tensors.values(), *fitted]
    digests = _fill(plan.pieces(max_bytes), paths, origins, known is None, advance, written, finite)
    plan = with_identity(plan, known or combined_blake3(plan.dense, digests))
    for piece, path in zip(plan.pieces(max_bytes), paths, strict=True):
        with path.open("r+b") as file:  # the header is as long as before
            file.write(piece.header)
    return plan


def write_pieces(
    made: Sequence[Piece[TensorCopy]],
    paths: Sequence[Path],
    advance: Advance = nothing,
    written: TensorWritten = lambda path: None,
) -> None:
    """Write each piece to its path, and compare it; `advance` is told of tensor bytes."""
    origins = [copy.origin for piece in made for copy in piece.tensors]
    _fill(made, paths, origins, False, advance, written)


def _fill(
    made: Sequence[Piece[TensorCopy]],
    paths: Sequence[Path],
    origins: Iterable[TensorInfo],
    hashes: bool,
    advance: Advance,
    written: TensorWritten,
    finite: bool = False,
) -> dict[TensorInfo, bytes]:
    for piece, path in zip(made, paths, strict=True):
        with path.open("wb") as file:
            file.write(piece.header)
            file.truncate(piece.file_size)
    copies = {copy.origin: copy for piece in made for copy in piece.tensors}
    targets = read_model(paths[0]).tensors
    return transfer(
        origins, copies=copies, targets=targets, hashes=hashes, advance=advance, written=written, finite=finite
    )


@contextmanager
def unchanged(files: Iterable[Path]) -> Iterator[None]:
    """Raises VerifyFailed after the block if another program changed one of the files meanwhile."""
    before = {path: _stamp(path) for path in files}
    yield
    for path, stamp in before.items():
        if _stamp(path) != stamp:
            raise VerifyFailed("was changed by another program while it was copied", path=path)


def _stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
