"""The plan of an export: the tensors of the SA file, the place of their bytes in the input, and the metadata.

make_plan() makes a plan from a header and an attention map, and opens no file. `--dry-run` prints the plan, write.py
writes its files, verify.py compares a written file with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..formats.gguf_encode import raw_string, raw_string_array
from ..formats.gguf_header import Header, RawValue, TensorInfo
from ..formats.gguf_keys import KEY_FIT_SHA256, KEY_HEAL, KEY_SOURCE_BLAKE3
from ..formats.shards import Piece, pieces
from ..formats.tensor_copies import TensorCopy
from ..model.attention_map import AttentionMap
from ..model.facts import Facts
from ..model.map_text import map_text
from ..model.spans import Span, spans_of
from .projections import Fitting, fitted_tensors


@dataclass(frozen=True)
class Plan:
    """What an export writes.

    Attributes:
        dense: The header of the input, which may share attention in some spans already.
        facts: What that header says: layers, heads, widths.
        attention: The map of the output, with the heads numbered as in the dense model.
        metadata: The keys and values of the output.
        tensors: The tensors of the output, and where their bytes are in the input.
        dropped: The tensors of the input that the output lacks.
        fitting: What is fitted; None if nothing is.
    """

    dense: Header
    facts: Facts
    attention: AttentionMap
    metadata: dict[str, RawValue]
    tensors: tuple[TensorCopy, ...]
    dropped: tuple[TensorInfo, ...]
    fitting: Fitting | None = None

    @property
    def weight_bytes_before(self) -> int:
        """Bytes of all tensors of the input."""
        return sum(info.n_bytes for info in self.dense.tensors.values())

    @property
    def weight_bytes_after(self) -> int:
        """Bytes of all tensors of the output."""
        return sum(copy.n_bytes for copy in self.tensors)

    @property
    def kv_bytes_per_token_before(self) -> int:
        """Bytes that one token takes in the f16 KV cache of the input."""
        return self.facts.kv_bytes_per_token(self.facts.attention)

    @property
    def kv_bytes_per_token_after(self) -> int:
        """Bytes that one token takes in the f16 KV cache of the output."""
        return self.facts.kv_bytes_per_token(self.attention)

    @property
    def recoded(self) -> tuple[TensorCopy, ...]:
        """Tensors that are encoded in another type, as the columns that they keep are not whole blocks of theirs."""
        return tuple(copy for copy in self.tensors if copy.recoded)

    @property
    def fitted(self) -> tuple[TensorCopy, ...]:
        """Tensors of the new spans that get other values than in the dense file."""
        if self.fitting is None:
            return ()
        return fitted_tensors(self.dense, self.facts, self.attention, self.fitting)

    @property
    def spans(self) -> tuple[Span, ...]:
        """The spans of the output if it shares whole layers, else none."""
        return spans_of(self.attention.source_layers) if self.attention.source_layers is not None else ()

    @property
    def spans_text(self) -> str:
        """The text of the map of the output."""
        return map_text(self.attention)

    def pieces(self, max_bytes: int | None = None) -> tuple[Piece[TensorCopy], ...]:
        """Return the files to write: one file, or shards with at most `max_bytes` of tensors each."""
        return pieces(self.dense.version, self.metadata, self.tensors, self.dense.alignment, max_bytes)


def with_identity(plan: Plan, source_blake3: str) -> Plan:
    """Return the plan with the identity of the dense model, which is only known after all its tensors were read."""
    return replace(plan, metadata=plan.metadata | {KEY_SOURCE_BLAKE3: raw_string(source_blake3)})


def with_fit(plan: Plan, fitted: Mapping[TensorCopy, TensorInfo], sha256: Sequence[str]) -> Plan:
    """Return the plan with new values for the tensors of plan.fitted.

    `fitted` says where the new values are stored, `sha256` are their SHA-256 in the order of plan.fitted.
    """
    tensors = tuple(
        replace(copy, origin=fitted[copy], rows=None, columns=None) if copy in fitted else copy for copy in plan.tensors
    )
    return replace(plan, tensors=tensors, metadata=plan.metadata | {KEY_FIT_SHA256: raw_string_array(sha256)})


def with_record(plan: Plan, record: str) -> Plan:
    """Return the plan of a healing with its record, as JSON."""
    return replace(plan, metadata=plan.metadata | {KEY_HEAL: raw_string(record)})
