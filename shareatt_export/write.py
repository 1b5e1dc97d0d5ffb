"""Carry out a plan: the SA file, streamed from the dense file, whole or not at all.

Memory does not grow with the model: tensor bytes go from file to file inside the kernel.
"""

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

from .errors import VerifyFailed
from .files import Advance, copy_range, hash_range, new_file, nothing
from .header import Header, pad
from .plan import Plan, with_identity


def tensor_sha256(header: Header, advance: Advance = nothing) -> str:
    """Identity of a model's weights: over name, type, shape and bytes of every tensor, in the order of the file."""
    digest = hashlib.sha256()
    with header.path.open("rb") as file:
        for info in header.tensors.values():
            name = info.name.encode()
            digest.update(struct.pack(f"<Q{len(name)}sI{len(info.shape)}Q", len(name), name, info.type, *info.shape))
            hash_range(file, info.offset, info.n_bytes, digest, advance)
    return digest.hexdigest()


def write_plan(
    plan: Plan,
    out: Path,
    force: bool = False,
    advance: Advance = nothing,
    check: Callable[[Path], object] = lambda path: None,
) -> None:
    """Write the file of `plan` to `out`; `advance` is told of plan.weight_bytes_before + plan.weight_bytes_after bytes.

    `check` gets the path of the finished file before it takes its name; if it raises, there will be no file.
    Raises OutputRefused where `out` may not or cannot be written, VerifyFailed if the dense file changes meanwhile.
    """
    dense = plan.dense
    with dense.path.open("rb") as source, new_file(out, [dense.path], force) as file:
        before = _stamp(dense.path)
        file.write(with_identity(plan, tensor_sha256(dense, advance)).header())
        for copy in plan.tensors:
            copy_range(source, copy.source_offset, copy.n_bytes, file, advance)
            file.write(b"\0" * (pad(copy.n_bytes, dense.alignment) - copy.n_bytes))
        if _stamp(dense.path) != before:
            raise VerifyFailed(f"{dense.path}: was changed by another program while it was copied; nothing was written")
        file.flush()
        check(Path(file.name))


def _stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
