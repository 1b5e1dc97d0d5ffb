"""The savings of Shared Attention by calculation: bytes read per token, floating point operations of a prompt, memory.

    weights = read_weights(header)
    decode_bytes(facts, facts.attention, weights.n_bytes, depth=4096)

The bytes that it reads limit the speed of decode, the operations that of prefill. The ratio of dense to SA is therefore
the speedup to expect if followers reuse the weights. A KV group that follows has no Q and K projections, reads no K and
computes no scores, but reads the attention weights, which are kept in f16. One that is dropped has and reads nothing.
Softmax, norms and activations are not counted.
"""

from dataclasses import dataclass
from math import prod

from gguf import GGMLQuantizationType

from ..formats.gguf_header import Header
from .attention_map import AttentionMap
from .facts import F16, Facts, row_bytes

P_ELEMENT_BYTES = 2  # one attention weight, in f16


@dataclass(frozen=True)
class WeightSizes:
    """The weights that one token reads: all of the model except an embedding that is not also the output matrix."""

    n_bytes: int
    n_elements: int  # without the output matrix
    n_elements_output: int  # of the output matrix, which only tokens with logits use
    has_experts: bool = False  # then a token reads less than all of these


def read_weights(header: Header) -> WeightSizes:
    """Return the sizes of a model's weights."""
    output = "output.weight" if "output.weight" in header.tensors else "token_embd.weight"
    read = [info for info in header.tensors.values() if info.name != "token_embd.weight" or info.name == output]
    return WeightSizes(
        n_bytes=sum(info.n_bytes for info in read),
        n_elements=sum(prod(info.shape) for info in read if info.name != output),
        n_elements_output=prod(header.tensors[output].shape),
        has_experts=any("_exps." in info.name for info in read),
    )


def bits_per_weight(header: Header) -> float:
    """Return the mean number of bits of a weight in the matrices of the layers, which are most of a model."""
    matrices = [info for info in header.tensors.values() if info.name.startswith("blk.") and len(info.shape) > 1]
    return 8 * sum(info.n_bytes for info in matrices) / max(1, sum(prod(info.shape) for info in matrices))


def saved_parameters(facts: Facts, attention: AttentionMap) -> int:
    """Return the number of parameters in the rows and columns of the projections that an export leaves away."""
    saved = 0
    for layer in attention.touched:
        n_rep = attention.n_rep(layer)
        without_qk = facts.n_head_kv[layer] - attention.n_k(layer)
        without_v = facts.n_head_kv[layer] - attention.n_v(layer)
        saved += without_qk * (n_rep + 1) * facts.head_dim_k + without_v * (n_rep + 1) * facts.head_dim_v
    return facts.n_embd * saved


def decode_bytes(
    facts: Facts,
    attention: AttentionMap,
    weight_bytes: float,
    depth: int,
    type_k: GGMLQuantizationType = F16,
    type_v: GGMLQuantizationType = F16,
) -> float:
    """Return the bytes read to decode one token after `depth` others."""
    following = sum(
        (attention.n_v(layer) - attention.n_k(layer)) * attention.n_rep(layer) for layer in attention.touched
    )
    return weight_bytes + depth * (facts.kv_bytes_per_token(attention, type_k, type_v) + P_ELEMENT_BYTES * following)


def prefill_flops(facts: Facts, attention: AttentionMap, weights: WeightSizes, n_tokens: int, depth: int) -> int:
    """Return the floating point operations of a prompt of `n_tokens` after `depth` tokens; only its last has logits."""
    products = sum(attention_flops(facts, attention, layer, n_tokens, depth) for layer in range(facts.n_layer))
    return 2 * n_tokens * weights.n_elements + 2 * weights.n_elements_output + products


def attention_flops(facts: Facts, attention: AttentionMap, layer: int, n_tokens: int, depth: int) -> int:
    """Return the floating point operations of the products with K and V in a layer, for tokens after `depth` others."""
    seen = n_tokens * depth + n_tokens * (n_tokens + 1) // 2  # each token attends to itself and to all tokens before it
    numbers = attention.n_k(layer) * facts.head_dim_k + attention.n_v(layer) * facts.head_dim_v
    return 2 * attention.n_rep(layer) * numbers * seen


def follower_decode_share(
    facts: Facts, layer: int, type_k: GGMLQuantizationType = F16, type_v: GGMLQuantizationType = F16
) -> float:
    """Return the bytes that a follower's attention reads in decode, relative to a layer that computes weights."""
    k, v = row_bytes(facts.n_embd_k(layer), type_k), row_bytes(facts.n_embd_v(layer), type_v)
    return (v + P_ELEMENT_BYTES * facts.n_head[layer]) / (k + v)


def follower_prefill_share(facts: Facts) -> float:
    """Return the operations of a follower's attention in prefill, relative to a layer that computes its own weights."""
    return facts.head_dim_v / (facts.head_dim_k + facts.head_dim_v)
