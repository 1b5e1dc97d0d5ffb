"""Texts that a model adds to prompts by greedy decoding, in several sequences of one context at a time.

    for i, text in complete(context, [Prompt(tokens, stop=("\\n",), max_tokens=64), ...]): ...

A sequence that is done makes room for the next prompt. A prompt takes over from any sequence what both have in common
at their beginning.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..llamacpp.engine import Context, Model, Token
from .batches import BATCH, common


@dataclass(frozen=True)
class Prompt:
    """A prompt as tokens, at least one, to continue with at most `max_tokens` tokens, up to where a text of `stop` is.

    The text ends before that text, too.
    """

    tokens: tuple[int, ...]
    stop: tuple[str, ...]
    max_tokens: int

    @property
    def n_positions(self) -> int:
        """Number of tokens of the prompt with its longest completion."""
        return len(self.tokens) + self.max_tokens


class _Completion:
    """A text that is being written. `next` is its last token, which the model has not read yet."""

    def __init__(self, number: int, prompt: Prompt) -> None:
        self.number, self.prompt = number, prompt
        self.n, self.next = 0, -1
        self.raw = b""

    def add(self, model: Model, token: int) -> str | None:
        """Add a token. Return the text if it is complete."""
        if model.ends(token):
            return self.raw.decode("utf-8", "replace")
        self.n, self.next = self.n + 1, token
        self.raw += model.text([token])
        text = self.raw.decode("utf-8", "replace")
        cut = min((text.find(mark) for mark in self.prompt.stop if mark in text), default=None)
        return text[:cut] if cut is not None or self.n == self.prompt.max_tokens else None


def complete(context: Context, prompts: Sequence[Prompt]) -> Iterator[tuple[int, str]]:
    """Yield the index of each prompt and its completion, as soon as it is complete.

    The context must have room for the longest prompt with its completion. Raises RuntimeProblem if llama.cpp cannot
    decode.
    """
    if not prompts:
        return
    context.clear()
    longest = max(prompt.n_positions for prompt in prompts)
    held: list[list[int]] = [[] for _ in range(min(context.n_sequences, max(1, context.n_cells // longest)))]
    waiting = sorted(range(len(prompts)), key=lambda i: prompts[i].tokens, reverse=True)
    writing: dict[int, _Completion] = {}  # by sequence
    while waiting or writing:
        tops: dict[int, int] = {}  # by sequence, the token that comes next
        if writing:
            batch = [Token(each.next, len(held[sequence]), sequence) for sequence, each in writing.items()]
            tops = dict(zip(writing, map(int, context.decode(batch).argmax(-1)), strict=True))
            for token in batch:
                held[token.sequence].append(token.id)
        for sequence in range(len(held)):
            if sequence not in writing and waiting:
                number = waiting.pop()
                writing[sequence] = _Completion(number, prompts[number])
                tops[sequence] = _read(context, held, sequence, prompts[number].tokens)
        for sequence, top in tops.items():
            if (text := writing[sequence].add(context.model, top)) is not None:
                yield writing.pop(sequence).number, text


def _read(context: Context, held: list[list[int]], sequence: int, tokens: Sequence[int]) -> int:
    """Let a sequence hold a prompt, and return the token that comes next. At least one token is computed."""
    donor = max(range(len(held)), key=lambda other: common(held[other], tokens))
    n = min(common(held[donor], tokens), len(tokens) - 1) if context.model.can_cut_back else 0
    if donor == sequence:
        context.keep(sequence, n)
    else:
        context.keep(sequence, 0)
        if n:
            context.copy_sequence(donor, sequence, n)
    held[sequence] = list(tokens)
    for start in range(n, len(tokens), BATCH):
        piece = [Token(tokens[i], i, sequence) for i in range(start, min(start + BATCH, len(tokens)))]
        logits = context.decode(piece, last=1)
    return int(logits[0].argmax())
