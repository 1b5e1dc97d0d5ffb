"""Let the dense model write its own training text, for those who have no text that is like the model's use.

The runtime samples at temperature 1, several sequences at once. They begin in turn with BOS alone, with a few tokens
drawn from the vocabulary, and, if the vocabulary has the token that opens a turn in ChatML, with that. Where the model
ends a text it goes on with another. (LLM-QAT, arXiv:2305.17888, begins with one random token; Magpie,
arXiv:2406.08464, with the opening of a user's turn.)
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..llamacpp import runtime
from ..llamacpp.bindings import load
from ..llamacpp.engine import Context, Logits, Model, Token
from ..llamacpp.source import cache_dir
from ..system.progress import Fraction
from .runtime_scores import threads

N_PARALLEL = 16  # sequences that are sampled at once
PROMPT = 4  # tokens of a prompt that is drawn from the vocabulary
TURN = "<|im_start|>"  # opens a turn in ChatML

Windows = npt.NDArray[np.int32]  # [n_window, n_ctx]


@dataclass(frozen=True)
class SelfText:
    """What the text depends on: `weights` is the identity of the dense model, `n_tokens` how many were asked for."""

    weights: str
    n_tokens: int
    n_ctx: int
    seed: int
    n_parallel: int = N_PARALLEL
    prompt: int = PROMPT
    version: int = 1

    @property
    def sha256(self) -> str:
        """SHA-256 of these settings, which names the file in the cache."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def path(self) -> Path:
        """The file in the user's cache."""
        return cache_dir() / "self-text" / f"{self.sha256}.npy"

    @property
    def n_windows(self) -> int:
        """How many windows the text has."""
        return max(2, -(-self.n_tokens // self.n_ctx))


def windows(text: SelfText, dense: Path, watch: Fraction = lambda fraction: None) -> Windows:
    """Return the text, from the cache if it is there; else the model writes it, and it is kept there."""
    if text.path.is_file():
        kept: Windows = np.load(text.path, allow_pickle=False)
        return kept
    built = runtime.require()
    with Model(load(built.python, built.bin), dense) as model:
        made = _written(text, model, watch)
    text.path.parent.mkdir(parents=True, exist_ok=True)
    temporary = text.path.with_suffix(".new.npy")
    np.save(temporary, made, allow_pickle=False)
    temporary.replace(text.path)
    return made


def _written(text: SelfText, model: Model, watch: Fraction) -> Windows:
    made: list[Windows] = []
    n_rounds = -(-text.n_windows // text.n_parallel)
    sizes = {"n_ctx": text.n_parallel * text.n_ctx, "n_seq_max": text.n_parallel}
    with Context(model, flash_attn=True, **sizes, **threads()) as context:
        for number in range(n_rounds):
            rng = np.random.default_rng((text.seed, number))

            def part(fraction: float, number: int = number) -> None:
                watch((number + fraction) / n_rounds)

            made.append(_round(context, _prompts(model, text, rng), text.n_ctx, rng, part))
    return np.concatenate(made)[: text.n_windows]


def _prompts(model: Model, text: SelfText, rng: np.random.Generator) -> list[list[int]]:
    """Return the tokens that the sequences of a round begin with."""
    bos = [model.bos] if model.bos is not None else []
    turn = model.tokenize(TURN, special=True)
    kinds = [bos, None, turn] if len(turn) == 1 else [bos, None]
    prompts = []
    for i in range(text.n_parallel):
        prompt = kinds[i % len(kinds)]
        prompts.append(prompt or [*bos, *_drawn(model, text.prompt, rng)])
    return prompts


def _drawn(model: Model, n: int, rng: np.random.Generator) -> list[int]:
    """Return tokens of the vocabulary that have a text."""
    drawn: list[int] = []
    while len(drawn) < n:
        token = int(rng.integers(model.n_vocab))
        drawn += [token] if model.text([token]) else []
    return drawn


def _round(
    context: Context, prompts: Sequence[Sequence[int]], n_ctx: int, rng: np.random.Generator, watch: Fraction
) -> Windows:
    """Return one window of each prompt; all sequences go on by one token at a time."""
    context.clear()
    made = np.empty((len(prompts), n_ctx), np.int32)
    sampled = np.zeros(len(prompts), np.int32)
    for position in range(n_ctx):
        given = [prompt[position] if position < len(prompt) else None for prompt in prompts]
        made[:, position] = [token if token is not None else own for token, own in zip(given, sampled, strict=True)]
        if position + 1 < n_ctx:
            batch = [Token(int(token), position, i) for i, token in enumerate(made[:, position])]
            sampled = _sampled(context.decode(batch), rng)
        watch(position / n_ctx)
    return made


def _sampled(logits: Logits, rng: np.random.Generator) -> npt.NDArray[np.int32]:
    """Draw a token from each row of logits, [n, n_vocab]."""
    cumulated = np.exp(logits - logits.max(-1, keepdims=True)).cumsum(-1, dtype=np.float64)
    places = rng.random(len(logits)) * cumulated[:, -1]
    return np.array(
        [np.searchsorted(row, place, "right") for row, place in zip(cumulated, places, strict=True)], np.int32
    )
