"""Check an SA file against the dense file that it was made from: source map, list of tensors, and every copied byte.

read_model has already refused wrong offsets, gaps and truncation, with the rules of llama.cpp's own loader.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from ..errors import BadSpans, VerifyFailed
from ..formats.gguf_encode import Tensor
from ..formats.gguf_header import Header
from ..formats.gguf_keys import (
    KEY_EXPORTER,
    KEY_FIT_SHA256,
    KEY_HEAL,
    KEY_SOURCE_BLAKE3,
    KEY_SOURCE_HEADS,
    KEY_SPANS,
    key_source_layers,
)
from ..formats.identity import tensors_blake3
from ..formats.shards import read_model
from ..formats.tensor_copies import TensorCopy, raw_rows
from ..model.attention_map import AttentionMap, of_flat
from ..model.facts import Facts, read_facts
from ..plan.make_plan import make_plan
from ..plan.plan import Plan, with_fit, with_identity
from ..plan.projections import Fitting
from ..system.streams import CHUNK, Advance, Inputs, nothing, read_range

OWN_WORDS = {KEY_EXPORTER, KEY_SPANS, KEY_HEAL}  # another version of this tool, or another run, writes other words


@dataclass(frozen=True)
class Verified:
    """`n_bytes`: bytes that were compared one by one, or for fitted tensors by their SHA-256."""

    plan: Plan
    n_tensors: int
    n_bytes: int
    source_blake3: str


def verify(out: Path, dense: Path, advance: Advance = nothing) -> Verified:
    """Check the SA file `out`. Raises VerifyFailed with the first difference.

    `advance` is told of the weight bytes of both files.
    """
    sa, dense_header = read_model(out), read_model(dense)
    sa_facts, dense_facts = read_facts(sa), read_facts(dense_header)
    if not sa_facts.is_shared:
        raise VerifyFailed("is missing, or no layer shares", path=out, field=key_source_layers(sa_facts.arch))
    if sa_facts.n_layer != dense_facts.n_layer:
        raise VerifyFailed(f"has {sa_facts.n_layer} layers, {dense} has {dense_facts.n_layer}", path=out)
    attention = dense_order(sa, sa_facts, dense_facts)
    fitting = None if dense_facts.is_shared else Fitting.from_header(sa)
    plan = with_identity(
        make_plan(dense_header, dense_facts, attention, fitting), tensors_blake3(dense_header, advance)
    )
    digests = _fitted(sa, plan, advance)
    plan = with_fit(plan, {}, digests) if fitting else plan
    verified = hold_against(sa, plan)
    same_bytes(sa, [copy for copy in plan.tensors if copy not in plan.fitted], advance)
    return verified


def dense_order(sa: Header, sa_facts: Facts, dense_facts: Facts) -> AttentionMap:
    """Return the map of the SA file, with its heads numbered as in the dense model. Raises VerifyFailed."""
    if sa_facts.attention.source_layers is not None:
        return sa_facts.attention
    flat = sa.integers(KEY_SOURCE_HEADS, len(dense_facts.attention.flat()))
    try:
        attention = of_flat(dense_facts.attention, flat)
    except BadSpans as error:
        raise VerifyFailed(error.reason, path=sa.path, field=f"{KEY_SOURCE_HEADS}: {error.field}") from None
    return attention


def _fitted(sa: Header, plan: Plan, advance: Advance) -> list[str]:
    """Return the SHA-256 of each fitted tensor, as it stands in the SA file."""
    digests = []
    for copy in plan.fitted:
        if (info := sa.tensors.get(copy.name)) is None:
            raise VerifyFailed("is missing", path=sa.path, field=f"tensor '{copy.name}'")
        digest = hashlib.sha256()
        with Inputs() as inputs:
            for chunk in read_range(inputs.open(info.path), info.offset, info.n_bytes):
                digest.update(chunk)
                advance(len(chunk))
        digests.append(digest.hexdigest())
    return digests


def hold_against(sa: Header, plan: Plan) -> Verified:
    """Check the header of a written file against its plan, in which the hash of the dense tensors is known."""
    same_inventory(sa, plan.tensors)
    _metadata(sa, plan)
    return Verified(plan, len(plan.tensors), plan.weight_bytes_after, sa.text(KEY_SOURCE_BLAKE3))


def same_inventory(sa: Header, tensors: Sequence[Tensor]) -> None:
    """Raises VerifyFailed unless names, shapes and types are the same, in this order."""
    for info, copy in zip_longest(sa.tensors.values(), tensors):
        if info is None:
            raise VerifyFailed("is missing", path=sa.path, field=f"tensor '{copy.name}'")
        if copy is None:
            raise VerifyFailed("should not be there", path=sa.path, field=f"tensor '{info.name}'")
        if info.name != copy.name:
            raise VerifyFailed(f"is in the place of '{copy.name}'", path=sa.path, field=f"tensor '{info.name}'")
        if (info.shape, info.type) != (copy.shape, copy.type):
            found, expected = (f"{list(one.shape)} {one.type.name}" for one in (info, copy))
            raise VerifyFailed(f"{found}, expected {expected}", path=sa.path, field=f"tensor '{info.name}'")


def _metadata(sa: Header, plan: Plan) -> None:
    for key, raw in plan.metadata.items():
        if key not in sa.metadata:
            raise VerifyFailed("is missing", path=sa.path, field=f"metadata key '{key}'")
        if key not in OWN_WORDS and sa.metadata[key] != raw:
            why = {
                KEY_SOURCE_BLAKE3: "the file was made from another dense file",
                KEY_FIT_SHA256: "a fitted tensor is not what the export wrote",
            }.get(key, "differs from what the dense model gives")
            raise VerifyFailed(why, path=sa.path, field=f"metadata key '{key}'")
    if extra := sa.metadata.keys() - plan.metadata.keys():
        raise VerifyFailed("should not be there", path=sa.path, field=f"metadata key '{min(extra)}'")


def same_bytes(sa: Header, copies: Sequence[TensorCopy], advance: Advance = nothing) -> None:
    """Raises VerifyFailed where a byte differs from what the dense file gives."""
    with Inputs() as inputs:
        for copy in copies:
            info = sa.tensors[copy.name]
            ours, place = inputs.open(info.path), info.offset
            for theirs, n_bytes in _expected(copy, inputs):
                for a, b in zip_longest(read_range(ours, place, n_bytes), theirs, fillvalue=b""):
                    if a != b:
                        why = "its bytes differ from those of the dense file"
                        raise VerifyFailed(why, path=info.path, field=f"tensor '{copy.name}'")
                    advance(len(a))
                place += n_bytes


def _expected(copy: TensorCopy, inputs: Inputs) -> Iterator[tuple[Iterable[bytes | bytearray], int]]:
    """Yield the bytes of a tensor, as parts with their number of bytes."""
    if copy.recoded:
        raw: bytes | bytearray = raw_rows(copy).tobytes()
        yield (raw[first : first + CHUNK] for first in range(0, len(raw), CHUNK)), len(raw)
        return
    dense = inputs.open(copy.origin.path)
    for first, n_bytes in copy.ranges():
        yield read_range(dense, copy.origin.offset + first, n_bytes), n_bytes
