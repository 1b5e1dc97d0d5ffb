"""Which head of the source serves which head of a follower.

Heads of two layers have no order in common, so the attention weights of head h of the source may suit another head of
the follower far better. A follower's heads can be moved for nothing: as rows of W_V and columns of W_O. Heads that read
the same V, a KV group, must stay together, so whole groups move, and heads within a group.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from scipy.optimize import linear_sum_assignment

Costs = npt.NDArray[np.float64]  # [n_head of the follower, n_head of the source]
Heads = tuple[int, ...]  # for each head of the follower, the head of the source whose weights it uses


def costs(
    source: npt.NDArray[np.float32],
    follower: npt.NDArray[np.float32],
    values: npt.NDArray[np.float32],
    projection: npt.NDArray[np.float32],
) -> Costs:
    """Squared error in the attention output of each head of the follower with the weights of each head of the source.

    source, follower: attention weights [n_head, n_tokens, n_tokens]; values: V of the follower
    [n_head_kv, n_tokens, head_dim]; projection: its W_O [n_embd, n_head * head_dim].
    """
    n_head, n_head_kv, head_dim = len(follower), len(values), values.shape[-1]
    by_head = projection.reshape(-1, n_head, head_dim)
    found = np.empty((n_head, n_head))
    for group in range(n_head_kv):
        theirs = source @ values[group]
        for head in range(group * n_head // n_head_kv, (group + 1) * n_head // n_head_kv):
            missing = theirs - follower[head] @ values[group]
            gram = by_head[:, head].T @ by_head[:, head]  # |W x|^2 = x (W'W) x
            found[head] = np.einsum("jtd,jtd->j", missing @ gram, missing)
    return found


def match(found: Costs, n_head_kv: int) -> Heads:
    """The cheapest assignment that keeps KV groups together: of heads for each pair of groups, then of groups."""
    size = len(found) // n_head_kv
    blocks = found.reshape(n_head_kv, size, n_head_kv, size).swapaxes(1, 2)
    within = [[linear_sum_assignment(block)[1] for block in row] for row in blocks]
    total = [[blocks[a, b][range(size), within[a][b]].sum() for b in range(n_head_kv)] for a in range(n_head_kv)]
    groups = linear_sum_assignment(np.array(total))[1]
    return tuple(int(b * size + head) for a, b in enumerate(groups) for head in within[a][b])


def groups_of(heads: Heads, n_head_kv: int) -> Heads:
    """The same for KV groups."""
    size = len(heads) // n_head_kv
    return tuple(head // size for head in heads[::size])


def order(heads: Sequence[int]) -> npt.NDArray[np.intp]:
    """Which of the follower's heads comes to stand where: position heads[h] gets head h."""
    return np.argsort(heads)


def can_move(n_head: int, row: int, type: GGMLQuantizationType) -> bool:
    """Whether columns of heads can be moved as bytes: a head must be whole blocks."""
    return row // n_head % GGML_QUANT_SIZES[type][0] == 0


def moved_columns(raw: npt.NDArray[np.uint8], heads: Heads) -> npt.NDArray[np.uint8]:
    """W_O as bytes, [n_embd, bytes of a row]"""
    by_head = raw.reshape(len(raw), len(heads), -1)
    return by_head[:, order(heads)].reshape(raw.shape)


def moved_rows(raw: npt.NDArray[np.uint8], groups: Heads) -> npt.NDArray[np.uint8]:
    """W_V, [n_head_kv * head_dim, bytes of a row], or its bias"""
    by_group = raw.reshape(len(groups), math.prod(raw.shape) // len(groups))
    return by_group[order(groups)].reshape(raw.shape)
