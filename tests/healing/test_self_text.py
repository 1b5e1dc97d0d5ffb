"""The training text that the dense model writes itself: where it begins, that it is sampled, and its cache."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shareatt_export.healing import self_text
from shareatt_export.healing.heal import heal
from shareatt_export.healing.job import planned
from shareatt_export.healing.request import HealRequest
from shareatt_export.healing.self_text import SelfText
from shareatt_export.llamacpp.engine import Context, Model, Token, log_softmax
from tests.support import parity

ASKED = SelfText("0" * 64, n_tokens=200, n_ctx=16, seed=3, n_parallel=4)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(self_text, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def test_it_is_kept_by_everything_that_it_depends_on(demo_dense, built, cache, monkeypatch):
    first = self_text.windows(ASKED, demo_dense)
    assert first.shape == (13, 16) and len({tuple(row) for row in first.tolist()}) == 13
    assert [path.name for path in (cache / "self-text").iterdir()] == [f"{ASKED.sha256}.npy"]
    other = self_text.windows(replace(ASKED, seed=4), demo_dense)
    assert not np.array_equal(first, other)
    monkeypatch.setattr(self_text, "_written", None)
    assert np.array_equal(self_text.windows(ASKED, demo_dense), first)


def test_it_begins_with_bos_or_with_drawn_tokens_and_the_model_finds_it_likely(demo_dense, built):
    windows = self_text.windows(replace(ASKED, n_tokens=64 * 16), demo_dense)
    with Model(parity.lib(), demo_dense) as model:
        assert model.bos is not None and (windows[:, 0] == model.bos).all()
        prompts = self_text._prompts(model, ASKED, np.random.default_rng((ASKED.seed, 0)))
        assert [len(prompt) for prompt in prompts] == [1, 1 + self_text.PROMPT] * 2
        assert all(row[: len(prompt)] == prompt for row, prompt in zip(windows.tolist(), prompts, strict=False))
        assert all(model.text([token]) for prompt in prompts[1::2] for token in prompt[1:])
    drawn = np.random.default_rng(0).integers(3, 2048, windows.shape)
    likely, unlikely = (_nll(demo_dense, rows) for rows in (windows, drawn))
    assert likely < 0.6 * unlikely


def _nll(path: Path, rows: np.ndarray) -> float:
    tokens = [[Token(int(token), i) for i, token in enumerate(row)] for row in rows[:8]]
    with Model(parity.lib(), path) as model, Context(model, n_ctx=64) as context:
        scores = []
        for row, batch in zip(rows, tokens, strict=False):
            context.clear()
            scores.append(-log_softmax(context.decode(batch))[np.arange(len(row) - 1), row[1:]].mean())
    return float(np.mean(scores))


def test_sampling_draws_by_probability():
    logits = np.log(np.array([[0.7, 0.2, 0.1]], np.float32)).repeat(20000, 0)
    shares = np.bincount(self_text._sampled(logits, np.random.default_rng(0)), minlength=3) / 20000
    assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.02)


def test_healing_with_it_needs_no_text(demo_dense, tmp_path, built):
    asked = HealRequest(demo_dense, "6-9", tmp_path / "out.gguf", n_ctx=16, steps=1, self_text=400, dtype="f32")
    done = heal(planned(asked))
    assert done.settings["text"] == [] and done.settings["self_text"] == 400 and done.written is not None
