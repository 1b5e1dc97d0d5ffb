"""The plan of an export: which tensors the SA file holds, where their bytes stand in its input, and its metadata.

Pure: a plan is made from a header and spans alone, and opens no file. `--dry-run` prints it, write.py carries it
out, verify.py holds the written file against it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..formats.gguf_encode import raw_string, raw_string_array
from ..formats.gguf_header import Header, RawValue, TensorInfo
from ..formats.gguf_keys import KEY_FIT_SHA256, KEY_SOURCE_SHA256
from ..formats.shards import Piece, pieces
from ..formats.tensor_copies import TensorCopy
from ..model.facts import Facts
from ..model.spans import SourceMap, Span
from .projections import Fitting, projections


@dataclass(frozen=True)
class Plan:
    """`dense` is the input; it may share attention in some spans already, and `spans` are all of the output's."""

    dense: Header
    facts: Facts
    spans: tuple[Span, ...]
    source_layers: SourceMap
    metadata: dict[str, RawValue]
    tensors: tuple[TensorCopy, ...]
    dropped: tuple[TensorInfo, ...]
    fitting: Fitting | None = None

    @property
    def weight_bytes_before(self) -> int:
        return sum(info.n_bytes for info in self.dense.tensors.values())

    @property
    def weight_bytes_after(self) -> int:
        return sum(copy.n_bytes for copy in self.tensors)

    @property
    def kv_bytes_per_token_before(self) -> int:
        return self.facts.kv_bytes_per_token(self.facts.source_layers)

    @property
    def kv_bytes_per_token_after(self) -> int:
        return self.facts.kv_bytes_per_token(self.source_layers)

    @property
    def fitted(self) -> tuple[TensorCopy, ...]:
        """Tensors of new followers whose values will not be the dense file's."""
        if self.fitting is None:
            return ()
        new = (i for i, source in enumerate(self.source_layers) if source != self.facts.source_layers[i])
        return tuple(copy for i in new for copy in projections(self.dense, self.facts, i).changed(self.fitting))

    @property
    def spans_text(self) -> str:
        return ",".join(map(str, self.spans))

    def pieces(self, max_bytes: int | None = None) -> tuple[Piece[TensorCopy], ...]:
        """The files to write: one, or shards of at most `max_bytes`."""
        return pieces(self.dense.version, self.metadata, self.tensors, self.dense.alignment, max_bytes)


def with_identity(plan: Plan, source_sha256: str) -> Plan:
    """The plan with the identity of the dense file's tensor data, which only reading all of it can tell."""
    return replace(plan, metadata=plan.metadata | {KEY_SOURCE_SHA256: raw_string(source_sha256)})


def with_fit(plan: Plan, fitted: Mapping[TensorCopy, TensorInfo], sha256: Sequence[str]) -> Plan:
    """The plan with the tensors of plan.fitted taken from where their new values stand, with their SHA-256 in order."""
    tensors = tuple(replace(copy, origin=fitted[copy]) if copy in fitted else copy for copy in plan.tensors)
    return replace(plan, tensors=tensors, metadata=plan.metadata | {KEY_FIT_SHA256: raw_string_array(sha256)})
