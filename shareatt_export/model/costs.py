"""What Shared Attention saves by arithmetic: bytes read for a token, floating point operations of a prompt, memory.

    weights = read_weights(header)
    decode_bytes(facts, source_layers, weights.n_bytes, depth=4096)

Decode is bound by the bytes it reads, prefill by its operations, so the quotients of dense and SA are the speedups to
expect of a runtime in which followers reuse the weights. A follower has no Q and K projection, reads no K and computes
no scores, but reads the attention weights, which are kept in f16. Softmax, norms and activations are left out.
"""

from dataclasses import dataclass
from math import prod

from gguf import GGMLQuantizationType

from ..formats.gguf_header import Header
from .facts import F16, Facts, row_bytes
from .spans import SourceMap, followers

P_ELEMENT_BYTES = 2  # an attention weight in f16


@dataclass(frozen=True)
class WeightSizes:
    """What is read of a model's weights for one token: all but an embedding that is not the output matrix too."""

    n_bytes: int
    n_elements: int  # of the layers
    n_elements_output: int  # used for the tokens alone whose logits are wanted


def read_weights(header: Header) -> WeightSizes:
    output = "output.weight" if "output.weight" in header.tensors else "token_embd.weight"
    read = [info for info in header.tensors.values() if info.name != "token_embd.weight" or info.name == output]
    return WeightSizes(
        n_bytes=sum(info.n_bytes for info in read),
        n_elements=sum(prod(info.shape) for info in read if info.name != output),
        n_elements_output=prod(header.tensors[output].shape),
    )


def saved_parameters(facts: Facts, source_layers: SourceMap) -> int:
    """The Q and K projections that the followers do without."""
    return sum(facts.n_embd * (facts.n_embd_q(layer) + facts.n_embd_k(layer)) for layer in followers(source_layers))


def decode_bytes(
    facts: Facts,
    source_layers: SourceMap,
    weight_bytes: float,
    depth: int,
    type_k: GGMLQuantizationType = F16,
    type_v: GGMLQuantizationType = F16,
) -> float:
    """Bytes read to decode one token behind `depth` others."""
    reread = P_ELEMENT_BYTES * sum(facts.n_head[layer] for layer in followers(source_layers))
    return weight_bytes + depth * (facts.kv_bytes_per_token(source_layers, type_k, type_v) + reread)


def prefill_flops(facts: Facts, source_layers: SourceMap, weights: WeightSizes, n_tokens: int, depth: int) -> int:
    """Floating point operations of a prompt of `n_tokens` behind `depth` others, logits for its last token only."""
    seen = n_tokens * depth + n_tokens * (n_tokens + 1) // 2  # each token sees itself and those before it
    attention = 0
    for layer, source in enumerate(source_layers):
        scores = facts.head_dim_k if layer == source else 0
        attention += 2 * facts.n_head[layer] * (scores + facts.head_dim_v) * seen
    return 2 * n_tokens * weights.n_elements + 2 * weights.n_elements_output + attention


def follower_decode_share(
    facts: Facts, layer: int, type_k: GGMLQuantizationType = F16, type_v: GGMLQuantizationType = F16
) -> float:
    """Bytes that the attention of a follower reads in decode, as a share of those of a layer that computes its own."""
    k, v = row_bytes(facts.n_embd_k(layer), type_k), row_bytes(facts.n_embd_v(layer), type_v)
    return (v + P_ELEMENT_BYTES * facts.n_head[layer]) / (k + v)


def follower_prefill_share(facts: Facts) -> float:
    """The same of the operations in prefill."""
    return facts.head_dim_v / (facts.head_dim_k + facts.head_dim_v)
