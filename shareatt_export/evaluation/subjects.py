"""What an evaluation compares: the dense model, SA models, and what else makes the dense model smaller.

The dense model with a K cache of another type, with weights of another type, and without attention in some layers show
whether sharing attention is worth its loss.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ..errors import BadInput
from ..formats.gguf_header import DEFAULT_ALIGNMENT, Header
from ..model.costs import bits_per_weight
from ..model.facts import F16, Facts, read_facts
from ..model.spans import followers, runs
from .request import EvaluateRequest

Q8_0 = GGMLQuantizationType.Q8_0
# K caches that flash attention reads, from the largest to the smallest; q4_0 takes as much as iq4_nl and loses more
K_TYPES = (F16, Q8_0, *(GGMLQuantizationType[name] for name in ("Q5_1", "Q5_0", "Q4_1", "IQ4_NL")))
WEIGHT_TYPES = ("Q4_K_M", "Q3_K_M")  # of the dense model; the types that most users run
MIN_BITS = 8  # of a weight that is quantised: made of fewer bits, these types lose more than users know of them


@dataclass(frozen=True)
class Subject:
    """A model with a type of K cache.

    Attributes:
        name: What reports call it.
        model: The path of its file.
        facts: What the header of the file says: layers, heads, widths, the map.
        type_k: The type of its K cache.
        weights: The type that its weights are quantised to; None for the weights of the file.
        without: Numbers of the layers whose attention output is left away.
    """

    name: str
    model: Path
    facts: Facts
    type_k: GGMLQuantizationType = F16
    weights: str | None = None
    without: tuple[int, ...] = ()

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache that one token takes."""
        return self.facts.kv_bytes_per_token(self.facts.attention, self.type_k, without=self.without)

    def with_k(self, type_k: GGMLQuantizationType) -> "Subject":
        """Return the same model with another type of K cache."""
        return replace(self, name=f"{self.name}, K cache {type_k.name.lower()}", type_k=type_k)

    def with_weights(self, type: str) -> "Subject":
        """Return the same model with quantised weights."""
        return replace(self, name=f"{self.name}, weights {type}", weights=type)

    def without_attention(self, layers: tuple[int, ...]) -> "Subject":
        """Return the same model without the attention output of these layers, which then need no KV cache."""
        return replace(self, name=f"{self.name}, no attention in {','.join(runs(layers))}", without=layers)


@dataclass(frozen=True)
class Subjects:
    """The models of an evaluation. `baselines` and `dropped` have one entry per SA model, or none if not asked for.

    Attributes:
        dense: The dense model.
        others: The SA models, in the order of the request.
        combined: The SA models with their own K cache as q8_0.
        baselines: The dense model with a quantised K cache; None where even the smallest K cache takes more bytes.
        weights: The dense model with quantised weights.
        dropped: The dense model without attention in the layers that share; None where no layer shares.
        why_no_weights: Why `weights` is empty although it was asked for.
    """

    dense: Subject
    others: tuple[Subject, ...]
    combined: tuple[Subject, ...]
    baselines: tuple[Subject | None, ...]
    weights: tuple[Subject, ...]
    dropped: tuple[Subject | None, ...]
    why_no_weights: str | None

    @property
    def all(self) -> tuple[Subject, ...]:
        """Each of them once, the dense model first."""
        more = filter(None, (*self.baselines, *self.weights, *self.dropped))
        return tuple(dict.fromkeys([self.dense, *self.others, *self.combined, *more]))

    def only(self, models: Collection[Path]) -> "Subjects":
        """Return them without the SA models that are not in `models`, and what only those were compared to."""
        kept = [other.model in models for other in self.others]
        return replace(
            self,
            others=tuple(compress(self.others, kept)),
            combined=tuple(compress(self.combined, kept)),
            baselines=tuple(compress(self.baselines, kept)),
            dropped=tuple(compress(self.dropped, kept)),
        )


def chosen(request: EvaluateRequest, headers: Mapping[Path, Header]) -> Subjects:
    """Return what a request compares. Raises BadInput if attention cannot be left away as in an SA model."""
    dense_path = Path(request.dense)
    dense = Subject("dense", dense_path, read_facts(headers[dense_path]))
    others = tuple(_named(tuple(map(Path, request.others)), headers))
    wants_weights = request.baselines and request.weights
    why_no_weights = _why_no_weights(headers[dense_path]) if wants_weights else None
    return Subjects(
        dense=dense,
        others=others,
        combined=tuple(other.with_k(Q8_0) for other in others) if request.combined else (),
        baselines=tuple(baseline(dense, other.kv_bytes_per_token) for other in others) if request.baselines else (),
        weights=tuple(map(dense.with_weights, WEIGHT_TYPES)) if wants_weights and not why_no_weights else (),
        dropped=tuple(_dropped(dense, other) for other in others) if request.drop else (),
        why_no_weights=why_no_weights,
    )


def _named(paths: tuple[Path, ...], headers: Mapping[Path, Header]) -> Iterator[Subject]:
    """Yield the SA models; files of the same name are named with their folders."""
    names = [path.name for path in paths]
    for path in paths:
        yield Subject(path.name if names.count(path.name) == 1 else str(path), path, read_facts(headers[path]))


def baseline(dense: Subject, kv_bytes_per_token: int) -> Subject | None:
    """Return the dense model with the best K cache that takes no more bytes; None if even the smallest takes more."""
    for type_k in K_TYPES:
        fits = dense.facts.head_dim_k % GGML_QUANT_SIZES[type_k][0] == 0
        subject = dense if type_k == F16 else dense.with_k(type_k)
        if fits and subject.kv_bytes_per_token <= kv_bytes_per_token:
            return subject
    return None


def _why_no_weights(dense: Header) -> str | None:
    """Return why the weights of a model are not quantised for a comparison, None if they are."""
    if (bits := bits_per_weight(dense)) < MIN_BITS:
        return f"its weights have {bits:.1f} bits each already, and less than {MIN_BITS} bits are not quantised again"
    if dense.alignment != DEFAULT_ALIGNMENT:
        return f"its general.alignment is {dense.alignment}, and llama-quantize writes {DEFAULT_ALIGNMENT} only"
    return None


def _dropped(dense: Subject, other: Subject) -> Subject | None:
    if (n := other.facts.n_layer) != dense.facts.n_layer:
        raise BadInput(
            f"has {n} layers, {dense.model} has {dense.facts.n_layer}",
            path=other.model,
            field="--drop",
            next_step="compare it with the dense model that it was made from",
        )
    source_layers = other.facts.attention.source_layers
    if source_layers is None:  # single KV groups have no layers that could be left away instead
        return None
    layers = tuple(followers(source_layers))
    return dense.without_attention(layers) if layers else None
