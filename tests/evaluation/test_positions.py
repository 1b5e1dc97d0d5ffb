"""Scores by position in the window."""

import numpy as np
import pytest

from shareatt_export.evaluation.evaluate import evaluate
from shareatt_export.evaluation.positions import edges
from shareatt_export.evaluation.request import EvaluateRequest
from shareatt_export.formats.texts import read_corpus, read_text
from shareatt_export.llamacpp.engine import Context, Model, Token, log_softmax
from shareatt_export.llamacpp.token_windows import token_windows
from tests.support import parity, tiny_models

TEXT = read_text(tiny_models.DEMO / "heldout.txt")


@pytest.mark.parametrize(
    "n_ctx, expected",
    [
        (64, [0, 64]),
        (128, [0, 128]),
        (129, [0, 128, 129]),
        (512, [0, 128, 256, 512]),
        (3000, [0, 128, 256, 512, 1024, 2048, 3000]),
    ],
)
def test_buckets_double(n_ctx, expected):
    assert edges(n_ctx) == expected


def test_positions_are_those_of_the_predicted_tokens(demo_dense, shared):
    """Compare with whole windows in one batch; the evaluation decodes each window in two pieces."""
    n_ctx, n_windows = 600, 2
    done = evaluate(EvaluateRequest(demo_dense, (shared,), TEXT, n_ctx, n_windows, baselines=False))
    assert [(bucket.first, bucket.last) for bucket in done.positions] == [(1, 127), (128, 255), (256, 511), (512, 599)]
    likelihoods = []
    for path in (demo_dense, shared):
        with Model(parity.lib(), path) as model, Context(model, True, n_ctx=n_ctx, n_batch=n_ctx) as context:
            for tokens in token_windows(model, read_corpus(TEXT), n_ctx, n_windows):
                context.clear()
                likelihoods.append(log_softmax(context.decode([Token(token, i) for i, token in enumerate(tokens)])))
            parts = token_windows(model, read_corpus(TEXT), n_ctx, n_windows)
    dense, ours = likelihoods[:2], likelihoods[2:]

    def nll(rows, tokens, bucket):
        return [-rows[i - 1, tokens[i]] for i in range(bucket.first, bucket.last + 1)]

    for bucket in done.positions:
        theirs, mine = (
            [np.mean(nll(*each, bucket)) for each in zip(rows, parts, strict=True)] for rows in (dense, ours)
        )
        at_dense, at = bucket.models
        assert at_dense.nll.value == pytest.approx(np.mean(theirs), abs=2e-3)
        assert at.nll.value == pytest.approx(np.mean(mine), abs=2e-3)
        assert at_dense.log_ratio.value == at_dense.log_ratio.half == at_dense.kl.value == 0
        differences = np.array(mine) - theirs
        assert at.log_ratio.value == pytest.approx(differences.mean(), abs=2e-3)
        assert at.log_ratio.half == pytest.approx(1.96 * abs(differences[0] - differences[1]) / 2, abs=4e-3)
        before = slice(bucket.first - 1, bucket.last)
        apart = [np.exp(p[before]) * (p[before] - q[before]) for p, q in zip(dense, ours, strict=True)]
        assert at.kl.value == pytest.approx(np.sum(apart) / 2 / (bucket.last + 1 - bucket.first), rel=0.01)
