"""Read tensors from a running graph, to check that a follower multiplies the source's attention weights with its own V.

The nodes are kq_soft_max of the source, and Vcur and kqv of the follower. This check needs no second implementation of
the model, so it works for every architecture.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shareatt_export.llamacpp import runtime
from shareatt_export.llamacpp.engine import Context, Model, Token
from shareatt_export.llamacpp.graph_callback import GraphCallback
from shareatt_export.model.attention_map import AttentionMap
from tests.support import parity

N_TOKENS = 24
Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Run:
    """The output of a model for N_TOKENS tokens, and tensors of its graph by node name and layer."""

    output: Array  # logits [n_tokens, n_vocab], or embeddings [n_tokens, n_embd] of an encoder
    taps: dict[tuple[str, int], Array]


def run(file: Path, path: str = "plain", causal: bool = True, source_heads: tuple[int, ...] | None = None) -> Run:
    """Run a GGUF on the path `path` of parity.PATHS, with a map of heads. An encoder needs causal=False."""
    flash_attn, variables = parity.PATHS[path]
    found: dict[tuple[str, int], Array] = {}

    def take(name: str, layer: int, values: npt.NDArray[np.float32]) -> None:
        """Of several nodes of a name, the last one counts; encoders name what comes behind W_O kqv_out again."""
        if name != "kqv_out" or (name, layer) not in found:
            found[name, layer] = values.astype(np.float64)

    taps = GraphCallback(
        parity.lib(),
        runtime.require().bin,
        ["kq_soft_max", "Vcur", "kqv", "kqv_out"],
        take,
    )
    params: dict[str, Any] = {"type_k": 0, "type_v": 0, "n_ctx": 256, "cb_eval": taps.callback}
    if not causal:
        params |= {"embeddings": True, "pooling_type": 0}
    with (
        parity.environment(variables),
        Model(parity.lib(), file) as model,
        _context(model, flash_attn, source_heads, params) as context,
        taps,
    ):
        rng = np.random.default_rng(3)
        batch = [Token(int(t), i) for i, t in enumerate(rng.integers(0, model.n_vocab, N_TOKENS))]
        output = context.decode(batch) if causal else context.embed(batch)
    output[np.abs(output) > 1e30] = 0  # Chameleon suppresses the logits of image tokens
    return Run(output, found)


def _context(model: Model, flash_attn: bool, source_heads: tuple[int, ...] | None, params: dict[str, Any]) -> Context:
    if source_heads is not None:
        model.share_heads(source_heads)
    return Context(model, flash_attn, **params)


def product(weights: Array, values: Array, head_dim: int) -> Array:
    """Multiply attention weights [1, n_head, n_tokens, n_kv] with the V of n_tokens tokens.

    Returns [1, n_head, n_tokens, head_dim]. `values` holds n_tokens * n_head_kv * head_dim numbers in this order.
    """
    values = values.reshape(weights.shape[2], -1, head_dim)
    by_head = np.repeat(values, weights.shape[1] // values.shape[1], axis=1)
    output: Array = np.einsum("bhtj,jhd->bhtd", weights[..., : len(values)], by_head)
    return output


def error(run: Run, source: int, follower: int, other: Run | None = None) -> float:
    """Return the NMSE of the follower's attention output against the weights of `source` times the follower's V.

    The weights are those of the run `other` if it is given.
    """
    measured = run.taps["kqv", follower]
    weights = (other or run).taps["kq_soft_max", source]
    return parity.nmse(measured, product(weights, run.taps["Vcur", follower], measured.shape[-1]))


def error_of_groups(run: Run, attention: AttentionMap, layer: int) -> float:
    """Return the NMSE of a layer's attention output, of an SA file with this map, against weights times V.

    The heads of the map are numbered as in the file.
    """
    kept = [group for group in attention.groups(layer) if attention.action(group) != "drop"]
    measured = run.taps["kqv_out", layer].reshape(N_TOKENS, -1)
    values = run.taps["Vcur", layer].reshape(N_TOKENS, len(kept), -1)
    parts = []
    for place, group in enumerate(kept):
        for source in attention.of(group):
            of_layer, head = divmod(source, attention.stride)
            weights = run.taps["kq_soft_max", of_layer][0, head, :, :N_TOKENS]
            parts.append(weights @ values[:, place])
    return parity.nmse(measured, np.concatenate(parts, axis=1))
