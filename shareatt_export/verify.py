"""Hold an SA file against the dense file that it was made from: map, inventory, identity, and every copied byte.

read_header has already refused wrong offsets, gaps and truncation, with the rules of llama.cpp's own loader.
"""

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

from .errors import VerifyFailed
from .facts import KEY_EXPORTER, KEY_SOURCE_SHA256, KEY_SPANS, key_source_layers, read_facts
from .files import Advance, nothing, read_range
from .header import Header, read_header
from .plan import Copy, Plan, make_plan, with_identity
from .spans import spans_of
from .write import tensor_sha256

OWN_WORDS = {KEY_EXPORTER, KEY_SPANS}  # another version of this tool may write them differently


@dataclass(frozen=True)
class Verified:
    plan: Plan
    n_tensors: int
    n_bytes: int  # compared, byte by byte
    source_sha256: str


def verify(out: Path, dense: Path, advance: Advance = nothing) -> Verified:
    """Raises VerifyFailed with the first difference; `advance` is told of the dense and of the SA weight bytes."""
    sa, dense_header = read_header(out), read_header(dense)
    sa_facts, dense_facts = read_facts(sa), read_facts(dense_header)
    if not sa_facts.is_shared:
        raise VerifyFailed(f"{out}: {key_source_layers(sa_facts.arch)}: is not there, or shares nothing")
    if sa_facts.n_layer != dense_facts.n_layer:
        raise VerifyFailed(f"{out}: has {sa_facts.n_layer} layers, {dense} has {dense_facts.n_layer}")

    plan = make_plan(dense_header, dense_facts, spans_of(sa_facts.source_layers))
    plan = with_identity(plan, tensor_sha256(dense_header, advance))
    _inventory(sa, plan)
    _metadata(sa, plan)
    with out.open("rb") as sa_file, dense.open("rb") as dense_file:
        for copy in plan.tensors:
            _same_bytes(sa, sa_file, copy, dense_file, advance)
    return Verified(plan, len(plan.tensors), plan.weight_bytes_after, sa.text(KEY_SOURCE_SHA256))


def _inventory(sa: Header, plan: Plan) -> None:
    for info, copy in zip_longest(sa.tensors.values(), plan.tensors):
        if info is None:
            raise VerifyFailed(f"{sa.path}: tensor '{copy.name}' is missing")
        if copy is None:
            raise VerifyFailed(f"{sa.path}: tensor '{info.name}' should not be there")
        if info.name != copy.name:
            raise VerifyFailed(f"{sa.path}: tensor '{info.name}' stands where '{copy.name}' should")
        if (info.shape, info.type) != (copy.shape, copy.type):
            raise VerifyFailed(
                f"{sa.path}: tensor '{info.name}': {list(info.shape)} {info.type.name}, "
                f"expected {list(copy.shape)} {copy.type.name}"
            )


def _metadata(sa: Header, plan: Plan) -> None:
    for key, raw in plan.metadata.items():
        if key not in sa.metadata:
            raise VerifyFailed(f"{sa.path}: metadata key '{key}' is missing")
        if key not in OWN_WORDS and sa.metadata[key] != raw:
            detail = "; another dense file" if key == KEY_SOURCE_SHA256 else ""
            raise VerifyFailed(f"{sa.path}: metadata key '{key}' is not what {plan.dense.path} leads to{detail}")
    if extra := sa.metadata.keys() - plan.metadata.keys():
        raise VerifyFailed(f"{sa.path}: metadata key '{min(extra)}' should not be there")


def _same_bytes(sa: Header, sa_file: BinaryIO, copy: Copy, dense_file: BinaryIO, advance: Advance) -> None:
    ours = read_range(sa_file, sa.tensors[copy.name].offset, copy.n_bytes)
    theirs = read_range(dense_file, copy.source_offset, copy.n_bytes)
    for a, b in zip_longest(ours, theirs, fillvalue=b""):
        if a != b:
            raise VerifyFailed(f"{sa.path}: tensor '{copy.name}': its bytes differ from those of the dense file")
        advance(len(a))
