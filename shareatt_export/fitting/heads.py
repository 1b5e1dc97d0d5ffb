"""Which head of the source serves which head of a follower.

Heads of two layers have no order in common, so the attention weights of head h of the source may suit another head of
the follower far better. Moving a follower's heads costs nothing at run time: it moves rows of W_V and columns of W_O.
Heads that read the same V, a KV group, must stay together, so whole groups move, and heads within a group.
"""

import math

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from scipy.optimize import linear_sum_assignment

from ..formats.tensor_copies import RawRows

ALIGN_WINDOWS = 16  # windows of text that decide the order of heads

Costs = npt.NDArray[np.float64]  # [n_head of the follower, n_head of the source]
Heads = tuple[int, ...]  # for each head of the follower, the head of the source whose attention weights it uses


def costs(
    source: npt.NDArray[np.float32],
    follower: npt.NDArray[np.float32],
    values: npt.NDArray[np.float32],
    projection: npt.NDArray[np.float32],
) -> Costs:
    """Return the squared error in the attention output of each head of the follower with each head of the source.

    source, follower: attention weights [n_head, n_tokens, n_tokens], of any number of heads of the source; values: V of
    the follower [n_head_kv, n_tokens, head_dim]; projection: W_O of the follower [n_embd, n_head * head_dim].
    """
    n_head, n_head_kv, head_dim = len(follower), len(values), values.shape[-1]
    by_head = projection.reshape(-1, n_head, head_dim)
    found = np.empty((n_head, len(source)))
    for group in range(n_head_kv):
        outputs = source @ values[group]
        for head in range(group * n_head // n_head_kv, (group + 1) * n_head // n_head_kv):
            missing = outputs - follower[head] @ values[group]
            gram = by_head[:, head].T @ by_head[:, head]  # |W x|^2 = x (W'W) x
            found[head] = np.einsum("jtd,jtd->j", missing @ gram, missing)
    return found


def match(found: Costs, n_head_kv: int) -> Heads:
    """Return the cheapest assignment that keeps KV groups together.

    First heads are assigned within each pair of groups, then groups to groups.
    """
    size = len(found) // n_head_kv
    blocks = found.reshape(n_head_kv, size, n_head_kv, size).swapaxes(1, 2)
    within = [[linear_sum_assignment(block)[1] for block in row] for row in blocks]
    total = [[blocks[a, b][range(size), within[a][b]].sum() for b in range(n_head_kv)] for a in range(n_head_kv)]
    groups = linear_sum_assignment(np.array(total))[1]
    return tuple(int(b * size + head) for a, b in enumerate(groups) for head in within[a][b])


def unmoved(n_head: int) -> Heads:
    """Return the order in which each head uses the source's head of the same number."""
    return tuple(range(n_head))


def groups_of(heads: Heads, n_head_kv: int) -> Heads:
    """Return for each KV group of the follower the group of the source whose place it takes."""
    size = len(heads) // n_head_kv
    return tuple(head // size for head in heads[::size])


def heads_by_place(heads: Heads) -> npt.NDArray[np.intp]:
    """Return which of the follower's heads stands in each place after the move: head h stands in place heads[h]."""
    return np.argsort(heads)


def can_move(n_head: int, row: int, type: GGMLQuantizationType) -> bool:
    """Return whether the columns of heads in rows of `row` numbers can move as bytes: a head must be whole blocks."""
    return row // n_head % GGML_QUANT_SIZES[type][0] == 0


def moved_columns(raw: RawRows, heads: Heads) -> RawRows:
    """Return W_O with its heads moved; as bytes, [n_embd, bytes of a row]."""
    by_head = raw.reshape(len(raw), len(heads), -1)
    return by_head[:, heads_by_place(heads)].reshape(raw.shape)


def moved_rows(raw: RawRows, groups: Heads) -> RawRows:
    """Return W_V or its bias with its KV groups moved; as bytes, [n_head_kv * head_dim, bytes of a row]."""
    by_group = raw.reshape(len(groups), math.prod(raw.shape) // len(groups))
    return by_group[heads_by_place(groups)].reshape(raw.shape)
