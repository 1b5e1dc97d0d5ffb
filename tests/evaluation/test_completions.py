"""Greedy completions of many prompts at once are those that each prompt gets alone, token by token."""

import struct

import numpy as np
import pytest
from gguf import GGUFValueType

import shareatt_export
from shareatt_export.evaluation.batches import BATCH, context_params
from shareatt_export.evaluation.completions import Prompt, complete
from shareatt_export.formats.gguf_header import RawValue
from shareatt_export.llamacpp.engine import Context, Model, Token
from tests.support import dummy_models, parity, small_gguf

EXACT = {"type_k": 0, "type_v": 0, "n_threads": 1, "n_threads_batch": 1}  # F32 caches
PROMPT = "    def __repr__(self):\n"  # the models are sure of the next tokens
TEXTS = (
    PROMPT,
    "import sys\nimport os\n",
    "class A:\n    def __init__(self, name):\n",
    "class A:\n    def __init__(self, name):\n        self.",
    "import sys\nimport os\nimport re\n",
    PROMPT,
    "x",
    "    def __repr__(self):\n        return",
    "import",
)


@pytest.fixture(scope="module", params=["dense", "shared"])
def model(request, demo_f32, tmp_path_factory):
    file = demo_f32
    if request.param == "shared":
        (file,) = shareatt_export.export(demo_f32, "6-9", tmp_path_factory.mktemp("sa") / "sa.gguf").files
    with Model(parity.lib(), file) as model:
        yield model


def greedy(model, tokens, n):
    """Return n tokens; each is computed from the whole text before it."""
    tokens = list(tokens)
    first = len(tokens)
    while len(tokens) < first + n:
        with Context(model, True, n_ctx=len(tokens), **EXACT) as context:
            logits = context.decode([Token(token, i) for i, token in enumerate(tokens)], last=1)
        tokens.append(int(logits[0].argmax()))
    return tokens[first:]


def begun(model, text):
    return (1, *model.tokenize(text))


def completed(model, prompts, n_sequences=4, n_ctx=1024):
    with Context(model, True, **EXACT, **context_params(64, n_sequences) | {"n_ctx": n_ctx}) as context:
        return [text for _, text in sorted(complete(context, prompts))]


def one(model, stop, max_tokens):
    return completed(model, [Prompt(begun(model, PROMPT), stop, max_tokens)])[0]


def test_it_is_greedy_and_ends_at_max_tokens(model):
    tokens = greedy(model, begun(model, PROMPT), 16)
    assert one(model, (), 16) == model.text(tokens).decode()
    assert one(model, (), 1) == model.text(tokens[:1]).decode()


def test_it_ends_where_the_first_stop_begins(model):
    text = model.text(greedy(model, begun(model, PROMPT), 16)).decode()
    early, late = text[10:15], text[20:24]  # inside of tokens and across them
    assert text.find(early) < text.find(late)
    assert one(model, (late, early), 16) == text[: text.find(early)]
    assert one(model, ("never that",), 16) == text


def test_it_ends_with_the_end_of_text(model, tmp_path):
    third = greedy(model, begun(model, PROMPT), 3)[2]
    eos = RawValue(GGUFValueType.UINT32, struct.pack("<I", third))
    changed = small_gguf.with_metadata(model.path, tmp_path / "eos.gguf", tokenizer__ggml__eos_token_id=eos)
    with Model(parity.lib(), changed) as other:
        tokens = greedy(other, begun(other, PROMPT), 3)
        assert tokens[2] == third and third not in tokens[:2]
        assert one(other, (), 16) == other.text(tokens[:2]).decode()


@pytest.mark.parametrize(("n_sequences", "n_ctx"), [(1, 256), (2, 256), (4, 1024), (16, 1024), (16, 256)])
def test_many_prompts_are_completed_as_each_alone(model, n_sequences, n_ctx):
    """More prompts than sequences, prompts that begin alike or are the same, lengths that differ, too few cells."""
    prompts = [Prompt(begun(model, text), (), 3 + 5 * i % 17) for i, text in enumerate(TEXTS)]
    expected = [model.text(greedy(model, prompt.tokens, prompt.max_tokens)).decode() for prompt in prompts]
    assert completed(model, prompts, n_sequences, n_ctx) == expected
    assert len(set(expected)) > 6


def test_sequences_wait_until_the_cache_has_room(model):
    rng = np.random.default_rng(1)
    prompts = [Prompt(tuple(rng.integers(3, model.n_vocab, 30).tolist()), (), 8) for _ in range(12)]
    assert completed(model, prompts, 12, 256) == completed(model, prompts, 1, 256)


def test_a_prompt_longer_than_a_batch(model):
    rng = np.random.default_rng(0)
    stem = (1, *rng.integers(3, model.n_vocab, BATCH + 20).tolist())
    prompts = [Prompt((*stem, *begun(model, text)[1:]), (), 4) for text in TEXTS[:3]]
    expected = [model.text(greedy(model, prompt.tokens, 4)).decode() for prompt in prompts]
    assert completed(model, prompts, 3, 2048) == expected


def test_no_prompts(model):
    assert completed(model, []) == []


def test_a_common_beginning_is_computed_once(model):
    computed = []

    class Counting(Context):
        def decode_at(self, tokens, outputs):
            computed.append(len(tokens))
            return super().decode_at(tokens, outputs)

    stem = begun(model, TEXTS[2])
    prompts = [Prompt((*stem, 100 + i), (), 1) for i in range(5)] + [Prompt(stem, (), 1)]
    with Counting(model, True, **EXACT, **context_params(64, 2)) as context:
        assert len(list(complete(context, prompts))) == 6
    assert sorted(computed) == [1, 1, 1, 1, 1, len(stem)]


def test_a_recurrent_model(built, tmp_path):
    """Its state cannot be cut back, so each prompt is computed whole; its tokens have no text, so stop is by number."""
    dummy_models.make("mamba", tmp_path / "mamba.gguf")
    rng = np.random.default_rng(0)
    stem = tuple(rng.integers(3, 128, 9).tolist())
    seen = []

    class Seeing(Context):
        def decode(self, tokens, last=None):
            logits = super().decode(tokens, last)
            seen.extend(logits.argmax(-1).tolist())
            return logits

    with Model(parity.lib(), tmp_path / "mamba.gguf") as model:
        prompts = [Prompt((*stem, 5 * i), (), 4) for i in range(1, 5)]
        expected = [greedy(model, prompt.tokens, 4) for prompt in prompts]
        with Seeing(model, True, **EXACT, **context_params(64, 3)) as context:
            assert len(list(complete(context, prompts))) == 4
    assert sorted(seen) == sorted(token for tokens in expected for token in tokens)
