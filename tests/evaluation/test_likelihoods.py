"""Likelihoods of many texts at once are those of each text alone, however much the texts have in common."""

from collections import Counter

import numpy as np
import pytest

import shareatt_export
from shareatt_export.evaluation.batches import BATCH, context_params
from shareatt_export.evaluation.likelihoods import Query, score
from shareatt_export.llamacpp.engine import Context, Model, Token, log_softmax
from tests.support import conversions, dummy_models, parity, tiny_models

EXACT = {"type_k": 0, "type_v": 0, "n_threads": 1, "n_threads_batch": 1}  # F32 caches


@pytest.fixture(scope="module", params=["dense", "shared", "sliding", "recurrent"])
def model(request, demo_f32, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "sliding":
        source = tiny_models.save(tiny_models.build_sliding("gemma2"), folder / "hf")
        dense = conversions.convert(source, folder / "dense.gguf", "auto")
        (file,) = shareatt_export.export(dense, "2-7", folder / "sa.gguf").files
    elif request.param == "recurrent":
        file = folder / "mamba.gguf"
        dummy_models.make("mamba", file)
    elif request.param == "shared":
        (file,) = shareatt_export.export(demo_f32, "6-9", folder / "sa.gguf").files
    else:
        file = demo_f32
    with Model(parity.lib(), file) as model:
        yield model


def alone(model, query):
    """Return log-likelihood and greediness of a text, computed in an empty context."""
    with Context(model, True, n_ctx=len(query.tokens), **EXACT) as context:
        rows = log_softmax(context.decode([Token(token, i) for i, token in enumerate(query.tokens)]))
    scored = range(query.n_given, len(query.tokens))
    log = sum(rows[i - 1, query.tokens[i]] for i in scored)
    return log, all(rows[i - 1].argmax() == query.tokens[i] for i in scored)


class Counting(Context):
    """A context that counts the tokens it computes."""

    n_computed = 0

    def decode_at(self, tokens, outputs):
        self.n_computed += len(tokens)
        return super().decode_at(tokens, outputs)


def check(model, queries, n_cells, n_sequences):
    """Compare with each text alone; return the number of tokens that were computed."""
    params = context_params(n_cells, n_sequences) | {"n_ctx": n_cells}
    with Counting(model, True, **EXACT, **params) as context:
        for _ in range(2):  # the second time, the context is not empty
            context.n_computed = 0
            found = score(context, queries)
            for query, likelihood in zip(queries, found, strict=True):
                log, is_greedy = alone(model, query)
                assert likelihood.log == pytest.approx(log, rel=3e-4, abs=0.02)
                assert likelihood.is_greedy == is_greedy
        return context.n_computed


def random_text(rng, model, n):
    return tuple(rng.integers(3, model.n_vocab, n).tolist())


def greedy(model, tokens, n):
    """Return the text with n tokens that the model adds to it."""
    for _ in range(n):
        with Context(model, True, n_ctx=256, **EXACT) as context:
            tokens += (int(context.decode([Token(t, i) for i, t in enumerate(tokens)])[-1].argmax()),)
    return tokens


@pytest.mark.parametrize(("n_cells", "n_sequences"), [(256, 16), (256, 3), (256, 1), (1024, 5)])
def test_texts_that_branch(model, n_cells, n_sequences):
    """Texts that begin alike up to many places, that are the same, or that are the beginning of another one."""
    rng = np.random.default_rng(n_sequences)
    texts = [greedy(model, random_text(rng, model, 30), 3)]
    for _ in range(24):
        stem = texts[rng.integers(len(texts))]
        texts.append((*stem[: rng.integers(1, len(stem) + 1)], *random_text(rng, model, rng.integers(1, 12))))
    texts += [texts[3], texts[4][:20], texts[0][:31]]
    queries = [Query(text, int(rng.integers(1, len(text)))) for text in texts]
    queries += [Query(texts[0], 30), Query(texts[0], 29), Query(random_text(rng, model, 2), 1)]
    n = check(model, queries, n_cells, n_sequences)
    n_alone = sum(len(query.inputs) for query in queries)
    assert n < 0.6 * n_alone if model.can_cut_back else n == n_alone


def test_choices_compute_their_prompt_once(model):
    """More choices than sequences, and a few examples before all prompts."""
    rng = np.random.default_rng(1)
    examples, questions = random_text(rng, model, 120), [random_text(rng, model, 20) for _ in range(3)]
    queries = [
        Query((*examples, *question, *random_text(rng, model, n)), 140) for question in questions for n in range(1, 9)
    ]
    rng.shuffle(queries)
    n = check(model, queries, 256, 5)
    tails = sum(len(query.inputs) - 140 for query in queries)
    if model.can_cut_back:  # a question is computed again in the group where its other choices are
        assert 120 + 3 * 20 + tails <= n <= 120 + 5 * 20 + tails + 20


def test_a_text_longer_than_a_batch(model):
    rng = np.random.default_rng(2)
    stem = random_text(rng, model, BATCH + 40)
    queries = [
        Query((*stem, *random_text(rng, model, n)), given) for n, given in ((30, 1), (9, BATCH), (1, BATCH + 40))
    ]
    check(model, queries, BATCH + 256, 4)


def test_no_texts(model):
    with Context(model, True, **EXACT, **context_params(64)) as context:
        assert score(context, []) == []


def test_the_tree_has_each_common_token_once(demo_f32):
    """The order of the texts does not matter, and the tokens that have an output are those before scored ones."""
    from shareatt_export.evaluation.likelihoods import _tree

    group = [Query((1, 2, 3, 9), 3), Query((1, 2, 3, 9, 9), 4), Query((1, 2, 4, 8), 2)]
    with Model(parity.lib(), demo_f32) as model, Context(model, n_ctx=256, n_seq_max=3, kv_unified=True) as context:
        tree = _tree(context, group, 1)
    assert [(t.id, t.position, t.sequence, t.also) for t in tree.tokens] == [
        (2, 1, 2, (1, 0)),
        (3, 2, 2, (1,)),
        (9, 3, 1, ()),
        (4, 2, 0, ()),
    ]
    assert tree.scored == {1: [(0, 9)], 2: [(1, 9)], 0: [(2, 4)], 3: [(2, 8)]}
    assert Counter(t.id for t in tree.tokens)[2] == 1
