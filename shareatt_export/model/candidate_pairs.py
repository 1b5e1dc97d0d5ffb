"""Pairs of layers that could share attention weights."""

from typing import NamedTuple

from .facts import Facts


class Pair(NamedTuple):
    """A layer that computes attention weights, and a later layer that could reuse them."""

    source: int
    follower: int


def candidates(facts: Facts, reach: int) -> list[Pair]:
    """Return all pairs of layers with equal heads and the same kind of attention, at most `reach` layers apart."""
    return [
        Pair(source, follower)
        for follower in range(facts.n_layer - facts.n_layer_nextn)
        for source in range(max(0, follower - reach), follower)
        if facts.is_swa[source] == facts.is_swa[follower]
        and (facts.n_head[source], facts.n_head_kv[source]) == (facts.n_head[follower], facts.n_head_kv[follower])
    ]
