"""Windows of the training text: they do not overlap, and an epoch uses each of them once."""

import torch

from shareatt_export.formats.texts import Text
from shareatt_export.healing.training_text import training_windows


def test_windows_are_apart_and_each_is_seen_once_before_any_is_seen_twice():
    text = Text("a", "".join(map(chr, range(100, 503))))
    made = training_windows(lambda content: list(map(ord, content)), 1, [text], 4)
    rows = [tuple(row) for part in (made.train, made.held_out) for row in part.tolist()]
    assert len(rows) == len(set(rows)) == 100 and len(made.held_out) == 5
    assert all(row[0] == 1 and row[2:] == (row[1] + 1, row[1] + 2) for row in rows)
    seen = [tuple(row) for step in range(19) for row in made.batch(step, 5, seed=0).tolist()]
    assert sorted(seen) == sorted(map(tuple, made.train.tolist()))
    assert not torch.equal(made.batch(0, 5, seed=0), made.batch(19, 5, seed=0))
    assert not torch.equal(made.batch(0, 5, seed=0), made.batch(0, 5, seed=1))
