"""Log-likelihoods of many texts; what texts have in common at their beginning is computed once.

    score(context, [Query((1, 15, 27, 3), 2), Query((1, 15, 27, 9), 2)])

Sorted texts that begin alike are neighbours. A group of neighbours is a tree: a token that several texts have in common
is one token of the batch, which belongs to the sequences of all of them. What a group and the one before it have in
common stays in the cache.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from ..llamacpp.engine import Context, Token, log_sum_exp
from ..system.progress import Step, silent
from .batches import common, most_outputs


@dataclass(frozen=True)
class Query:
    """A text as tokens. The first `n_given` of them, at least one, are given; the others are scored."""

    tokens: tuple[int, ...]
    n_given: int

    @property
    def inputs(self) -> tuple[int, ...]:
        """All tokens but the last one, after which nothing is scored."""
        return self.tokens[:-1]


@dataclass(frozen=True)
class Likelihood:
    """`log`: sum of the logarithms of the probabilities of the scored tokens. `is_greedy`: whether each is the top."""

    log: float
    is_greedy: bool


@dataclass
class _Tree:
    """The tokens to compute for a group of texts, and by token which text has which token after it, to be scored."""

    tokens: list[Token] = field(default_factory=list)
    scored: dict[int, list[tuple[int, int]]] = field(default_factory=dict)


def score(context: Context, queries: Sequence[Query], step: Step = silent) -> list[Likelihood]:
    """Return the likelihood of each text, in the order of `queries`.

    The context must have room for the longest text. Raises RuntimeProblem if llama.cpp cannot decode.
    """
    order = sorted(range(len(queries)), key=lambda i: queries[i].inputs)
    found: dict[int, Likelihood] = {}
    held: tuple[int, ...] = ()
    context.clear()
    for group in _groups(context, [queries[i] for i in order]):
        step("scoring", len(found) / len(queries))
        kept = _kept(held, group) if context.model.can_cut_back else 0
        _make_room(context, kept, len(group))
        for i, likelihood in zip(order[len(found) :], _score(context, group, kept), strict=False):
            found[i] = likelihood
        held = group[-1].inputs
    step("scoring", 1.0)
    return [found[i] for i in range(len(queries))]


def _groups(context: Context, ordered: Sequence[Query]) -> Iterator[list[Query]]:
    """Yield neighbours whose tree fits the sequences and the cells of the context."""
    group: list[Query] = []
    cells = 0
    for query in ordered:
        added = len(query.inputs) - (_shared(context, group[-1], query) if group else 0)
        if group and (len(group) == context.n_sequences or cells + added > context.n_cells):
            yield group
            group, cells, added = [], 0, len(query.inputs)
        group.append(query)
        cells += added
    if group:
        yield group


def _shared(context: Context, a: Query, b: Query) -> int:
    return common(a.inputs, b.inputs) if context.model.can_cut_back else 0


def _kept(held: Sequence[int], group: Sequence[Query]) -> int:
    """Return how many first tokens all texts of the group have in common with `held`, before the first scored one."""
    of_group = common(group[0].inputs, group[-1].inputs)  # the first and the last of sorted texts differ the most
    return min(common(held, group[0].inputs), of_group, *(query.n_given - 1 for query in group))


def _make_room(context: Context, kept: int, n_texts: int) -> None:
    """Remove what the group before left but `kept` tokens of sequence 0, its last text; give them to all texts."""
    context.keep(0, kept)
    for sequence in range(1, context.n_sequences):
        context.keep(sequence, 0)
        if kept and sequence < n_texts:
            context.copy_sequence(0, sequence)


def _tree(context: Context, group: Sequence[Query], kept: int) -> _Tree:
    """Return the tree of a group without the `kept` first tokens. The last text has sequence 0."""
    tree = _Tree()
    shared = [kept, *(max(kept, _shared(context, a, b)) for a, b in pairwise(group))]
    path: list[int] = []  # the indices of the tokens of a text in the tree, from position `kept` on
    for i, query in enumerate(group):
        path = path[: shared[i] - kept]
        for position in range(shared[i], len(query.inputs)):
            end = next((j for j in range(i + 1, len(group)) if shared[j] <= position), len(group))
            path.append(len(tree.tokens))
            first, *also = (len(group) - 1 - j for j in range(i, end))
            tree.tokens.append(Token(query.inputs[position], position, first, tuple(also)))
        for position in range(query.n_given, len(query.tokens)):
            before = path[position - 1 - kept]
            tree.scored.setdefault(before, []).append((i, query.tokens[position]))
    return tree


def _score(context: Context, group: Sequence[Query], kept: int) -> list[Likelihood]:
    tree = _tree(context, group, kept)
    logs, are_greedy = [0.0] * len(group), [True] * len(group)
    size = most_outputs(context.model.n_vocab)
    for start in range(0, len(tree.tokens), size):
        batch = tree.tokens[start : start + size]
        outputs = [i for i in range(len(batch)) if start + i in tree.scored]
        logits = context.decode_at(batch, outputs)
        for i, row in zip(outputs, logits, strict=True):
            log_sum, top = float(log_sum_exp(row)), int(row.argmax())
            for text, token in tree.scored[start + i]:
                logs[text] += float(row[token]) - log_sum
                are_greedy[text] &= token == top
    return [Likelihood(log, is_greedy) for log, is_greedy in zip(logs, are_greedy, strict=True)]
