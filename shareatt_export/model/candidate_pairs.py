"""Pairs of layers that could share attention weights."""

from .facts import Facts


def candidates(facts: Facts, reach: int) -> list[tuple[int, int]]:
    """Pairs of layers (source, follower) that could share."""
    return [
        (source, follower)
        for follower in range(facts.n_layer - facts.n_layer_nextn)
        for source in range(max(0, follower - reach), follower)
        if facts.is_swa[source] == facts.is_swa[follower]
        and (facts.n_head[source], facts.n_head_kv[source]) == (facts.n_head[follower], facts.n_head_kv[follower])
    ]


Pair = tuple[int, int]  # source, follower
