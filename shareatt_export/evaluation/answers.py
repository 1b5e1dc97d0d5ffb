"""What a model answers to the items of a task file, as lm-evaluation-harness asks and scores them.

Choices: prompt and choice are encoded as one text, which is split at the length of the prompt's own encoding; white
space at the prompt's end belongs to the choice. The choice with the highest log-likelihood wins (acc), or with the
highest one per character (acc_norm). Completion: greedy; right if it is the target, but for white space around it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..llamacpp.engine import Context, Model, Token, log_softmax
from .tasks import Choices, Completion, Item, Tasks, at

N_UBATCH = 512


@dataclass(frozen=True)
class Encoded:
    """An item in tokens; `choices` are empty for a Completion."""

    item: Item
    prompt: list[int]
    choices: tuple[list[int], ...]

    @property
    def n_cells(self) -> int:
        """Of the KV cache; all choices are in it at once."""
        return len(self.prompt) + max(sum(map(len, self.choices)), _n_generated(self.item))

    @property
    def n_positions(self) -> int:
        return len(self.prompt) + max((*map(len, self.choices), _n_generated(self.item)))


def _n_generated(item: Item) -> int:
    return item.max_tokens if isinstance(item, Completion) else 0


def encode(model: Model, tasks: Tasks, n_ctx_train: int) -> list[Encoded]:
    """Raises BadInput for an item that is longer than the model's context, or leaves nothing to predict."""
    return [_encode(model, tasks.path, item, n_ctx_train) for item in tasks.items]


def _encode(model: Model, path: Path, item: Item, n_ctx_train: int) -> Encoded:
    bos = [model.bos] if model.bos is not None else []
    kept = item.prompt.rstrip() if isinstance(item, Choices) else item.prompt
    prompt = model.tokenize(kept, special=True)
    if isinstance(item, Choices):
        wholes = [model.tokenize(item.prompt + choice, special=True) for choice in item.choices]
        choices = tuple(whole[len(prompt) :] for whole in wholes)
    else:
        choices = ()
    for i, choice in enumerate(choices):
        if not choice:
            raise at(path, item.line, f"choices: number {i} adds no token to the prompt")
    if prompt[:1] != bos:  # a chat template may have written it
        prompt = bos + prompt
    if not prompt:
        raise at(path, item.line, "prompt: is empty, and this model begins no text by itself")
    encoded = Encoded(item, prompt, choices)
    if encoded.n_positions > n_ctx_train:
        what = f"max_tokens {item.max_tokens}" if isinstance(item, Completion) else "its longest choice"
        raise at(
            path,
            item.line,
            f"prompt: {len(prompt)} tokens, {encoded.n_positions} with {what}; the model's context is {n_ctx_train}",
        )
    return encoded


def context_params(sheet: Sequence[Encoded]) -> dict[str, int | bool]:
    """Fields of llama_context_params with which every item fits."""
    n_ctx = max(encoded.n_cells for encoded in sheet)
    n_seq_max = max(len(encoded.choices) for encoded in sheet)
    sizes = {"n_ctx": n_ctx, "n_batch": n_ctx, "n_ubatch": min(n_ctx, N_UBATCH)}
    return sizes | {"n_seq_max": max(1, n_seq_max), "kv_unified": True}


def answer(context: Context, sheet: Sequence[Encoded]) -> dict[str, dict[int, bool]]:
    """By metric and line: whether the item is right."""
    right: dict[str, dict[int, bool]] = {}
    for encoded in sheet:
        item = encoded.item
        if isinstance(item, Choices):
            likelihoods = log_likelihoods(context, encoded.prompt, encoded.choices)
            per_character = likelihoods / [len(choice) for choice in item.choices]
            right.setdefault("acc", {})[item.line] = bool(likelihoods.argmax() == item.answer)
            right.setdefault("acc_norm", {})[item.line] = bool(per_character.argmax() == item.answer)
        else:
            text = generate(context, encoded.prompt, item.stop, item.max_tokens)
            right.setdefault("exact_match", {})[item.line] = text.strip() == item.target.strip()
    return right


def log_likelihoods(
    context: Context, prompt: Sequence[int], choices: Sequence[Sequence[int]]
) -> npt.NDArray[np.float64]:
    """Of each choice after the prompt, which is computed once: each choice goes on in a sequence of its own."""
    n = len(prompt)
    context.clear()
    after_prompt = log_softmax(context.decode(_tokens(prompt, 0), last_only=True))[0]
    for sequence in range(1, len(choices)):
        context.copy_sequence(0, sequence)
    sums = np.array([after_prompt[choice[0]] for choice in choices])
    batch = [token for sequence, choice in enumerate(choices) for token in _tokens(choice[:-1], n, sequence)]
    if batch:
        rows = log_softmax(context.decode(batch))
        owners = [sequence for sequence, choice in enumerate(choices) for _ in choice[1:]]
        targets = [token for choice in choices for token in choice[1:]]
        np.add.at(sums, owners, rows[np.arange(len(targets)), targets])
    return sums


def generate(context: Context, prompt: Sequence[int], stop: Sequence[str], max_tokens: int) -> str:
    """What follows the prompt greedily, up to where a text of `stop` begins."""
    context.clear()
    logits = context.decode(_tokens(prompt, 0), last_only=True)
    tokens: list[int] = []
    while True:
        token = int(logits[-1].argmax())
        if context.model.ends(token):
            return _decoded(context.model, tokens)
        tokens.append(token)
        text = _decoded(context.model, tokens)
        cut = min((text.find(mark) for mark in stop if mark in text), default=None)
        if cut is not None or len(tokens) == max_tokens:
            return text[:cut]
        logits = context.decode([Token(token, len(prompt) + len(tokens) - 1)])


def _decoded(model: Model, tokens: Sequence[int]) -> str:
    return model.text(tokens).decode("utf-8", "replace")


def _tokens(ids: Sequence[int], first: int, sequence: int = 0) -> list[Token]:
    return [Token(token, position, sequence) for position, token in enumerate(ids, first)]
