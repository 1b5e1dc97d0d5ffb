"""Windows of the training text: they do not overlap, and an epoch uses each of them once."""

import torch

from shareatt_export.formats.texts import Text
from shareatt_export.healing.training_text import training_windows


def test_windows_are_apart_and_each_is_seen_once_before_any_is_seen_twice():
    class Tokenizer:
        bos_token_id = 1

        def __call__(self, text, add_special_tokens=True):
            return type("", (), {"input_ids": [1] * add_special_tokens + [ord(char) for char in text]})

    made = training_windows(Tokenizer(), [Text("a", "".join(map(chr, range(100, 503))))], 4)
    rows = [tuple(row) for part in (made.train, made.held_out) for row in part.tolist()]
    assert len(rows) == len(set(rows)) == 100 and len(made.held_out) == 5
    assert all(row[0] == 1 and row[2:] == (row[1] + 1, row[1] + 2) for row in rows)
    seen = [tuple(row) for step in range(19) for row in made.batch(step, 5, seed=0).tolist()]
    assert sorted(seen) == sorted(map(tuple, made.train.tolist()))
    assert not torch.equal(made.batch(0, 5, seed=0), made.batch(19, 5, seed=0))
    assert not torch.equal(made.batch(0, 5, seed=0), made.batch(0, 5, seed=1))
