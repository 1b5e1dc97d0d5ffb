"""The answers of a model to the items of a task file, asked and scored as lm-evaluation-harness does it.

Choices: prompt and choice are encoded as one text, which is split at the length of the prompt's own encoding; white
space at the prompt's end belongs to the choice. The model answers with the choice that has the highest log-likelihood
(acc), or the highest log-likelihood per character (acc_norm). Completion: greedy decoding; the answer is right if it is
the target, without white space around both.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..llamacpp.engine import Context, Model
from .completions import Prompt, complete
from .likelihoods import Query, score
from .tasks import Choices, Completion, Item, Tasks, bad_line


@dataclass(frozen=True)
class Encoded:
    """An item as tokens; `choices` is empty for a Completion."""

    item: Item
    prompt: list[int]
    choices: tuple[list[int], ...]

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


def answer(context: Context, items: Sequence[Encoded]) -> dict[str, dict[int, bool]]:
    """Return by metric and line whether the model's answer is right."""
    right: dict[str, dict[int, bool]] = {}
    for encoded, likelihoods in zip(items, _log_likelihoods(context, items), strict=True):
        if isinstance(item := encoded.item, Choices):
            per_character = likelihoods / [len(choice) for choice in item.choices]
            right.setdefault("acc", {})[item.line] = bool(likelihoods.argmax() == item.answer)
            right.setdefault("acc_norm", {})[item.line] = bool(per_character.argmax() == item.answer)
    completions = [(each, each.item) for each in items if isinstance(each.item, Completion)]
    prompts = [Prompt(tuple(each.prompt), item.stop, item.max_tokens) for each, item in completions]
    texts = dict(complete(context, prompts))
    for i, (_, item) in enumerate(completions):
        right.setdefault("exact_match", {})[item.line] = texts[i].strip() == item.target.strip()
    return right


def _log_likelihoods(context: Context, items: Sequence[Encoded]) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the log-likelihood of each choice after the prompt, in nats, for each item."""
    queries = [
        Query((*encoded.prompt, *choice), len(encoded.prompt)) for encoded in items for choice in encoded.choices
    ]
    found = iter(score(context, queries))
    for encoded in items:
        yield np.array([next(found).log for _ in encoded.choices])
