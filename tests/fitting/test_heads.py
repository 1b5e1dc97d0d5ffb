"""The assignment of heads: its costs, and the cheapest order."""

import itertools

import numpy as np
import pytest

from shareatt_export.fitting import heads

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("n_head_kv", [1, 2, 3, 6])
def test_the_cheapest_order_that_keeps_groups_together(n_head_kv):
    size = 6 // n_head_kv
    found = RNG.random((6, 6))

    def possible(order: tuple[int, ...]) -> bool:
        return all(len({order[head] // size for head in range(g, g + size)}) == 1 for g in range(0, 6, size))

    every = filter(possible, itertools.permutations(range(6)))
    assert heads.match(found, n_head_kv) == min(every, key=lambda order: found[range(6), order].sum())


def test_costs_are_errors_of_the_attention_output():
    n_head, n_head_kv, n_tokens, head_dim, n_embd = 4, 2, 7, 3, 5
    source, follower = (RNG.random((n_head, n_tokens, n_tokens)).astype(np.float32) for _ in range(2))
    values = RNG.random((n_head_kv, n_tokens, head_dim)).astype(np.float32)
    projection = RNG.random((n_embd, n_head * head_dim)).astype(np.float32)
    found = heads.costs(source, follower, values, projection)
    for head, other in itertools.product(range(n_head), repeat=2):
        missing = (source[other] - follower[head]) @ values[head // 2]
        output = missing @ projection[:, head * head_dim : (head + 1) * head_dim].T
        assert found[head, other] == pytest.approx(np.sum(output**2), rel=1e-4)
