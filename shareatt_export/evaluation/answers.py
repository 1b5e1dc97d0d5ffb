"""The answers of a model to the items of a task file, asked and scored as lm-evaluation-harness does it.

Choices: prompt and choice are encoded as one text, which is split at the length of the prompt's own encoding; white
space at the prompt's end belongs to the choice. The model answers with the choice that has the highest log-likelihood
(acc), or the highest log-likelihood per character (acc_norm). Completion: greedy decoding; the answer is right if it is
the target, without white space around both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..llamacpp.engine import Context, Model, Token, log_softmax
from .tasks import Choices, Completion, Item, Tasks, bad_line

N_UBATCH = 512


@dataclass(frozen=True)
class Encoded:
    """An item as tokens; `choices` is empty for a Completion."""

    item: Item
    prompt: list[int]
    choices: tuple[list[int], ...]

    @property
    def n_cells(self) -> int:
        """Number of cells of the KV cache that the item takes; all choices are in it at once."""
        return len(self.prompt) + max(sum(map(len, self.choices)), _n_generated(self.item))

    @property
    def n_positions(self) -> int:
        """Number of tokens of the prompt with its longest choice or completion."""
        return len(self.prompt) + max((*map(len, self.choices), _n_generated(self.item)))


def _n_generated(item: Item) -> int:
    return item.max_tokens if isinstance(item, Completion) else 0


def encode(model: Model, tasks: Tasks, n_ctx_train: int) -> list[Encoded]:
    """Encode the items for a model.

    Raises BadInput for an item that is longer than the model's context, has an empty prompt where the model has no BOS
    token, or has a choice that adds no token.
    """
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
            raise bad_line(path, item.line, f"number {i} adds no token to the prompt", "choices")
    if prompt[:1] != bos:  # the text of the prompt may begin with it, from a chat template
        prompt = bos + prompt
    if not prompt:
        raise bad_line(path, item.line, "is empty, and this model has no BOS token to begin a text with", "prompt")
    encoded = Encoded(item, prompt, choices)
    if encoded.n_positions > n_ctx_train:
        what = f"max_tokens {item.max_tokens}" if isinstance(item, Completion) else "its longest choice"
        raise bad_line(
            path,
            item.line,
            f"{len(prompt)} tokens, {encoded.n_positions} with {what}; the model's context is {n_ctx_train}",
            "prompt",
        )
    return encoded


def context_params(items: Sequence[Encoded]) -> dict[str, int | bool]:
    """Return fields of llama_context_params for a context in which every item fits."""
    n_ctx = max(encoded.n_cells for encoded in items)
    n_seq_max = max(len(encoded.choices) for encoded in items)
    sizes = {"n_ctx": n_ctx, "n_batch": n_ctx, "n_ubatch": min(n_ctx, N_UBATCH)}
    return sizes | {"n_seq_max": max(1, n_seq_max), "kv_unified": True}


def answer(context: Context, items: Sequence[Encoded]) -> dict[str, dict[int, bool]]:
    """Return by metric and line whether the model's answer is right."""
    right: dict[str, dict[int, bool]] = {}
    for encoded in items:
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
    """Return the log-likelihood of each choice after the prompt, in nats, [n_choices].

    The prompt is computed once; each choice continues it in a sequence of its own.
    """
    n = len(prompt)
    context.clear()
    after_prompt = log_softmax(context.decode(_tokens(prompt, 0), last=1))[0]
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
    """Return the text that greedy decoding adds to the prompt, up to where a text of `stop` begins."""
    context.clear()
    logits = context.decode(_tokens(prompt, 0), last=1)
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
