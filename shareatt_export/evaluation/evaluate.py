"""How well SA models predict a text and answer tasks, compared to the dense model and what else makes that smaller.

Each model reads the same windows. As in llama-perplexity, the second half of a window is scored, so that every scored
token has at least half a window before it; the scores by position are of whole windows. KL is the divergence from the
dense model's next-token distribution to the other model's.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

from ..errors import BadInput
from ..formats.gguf_header import Header
from ..formats.gguf_keys import KEY_FIT_TEXT
from ..formats.shards import read_model
from ..formats.texts import Corpus, read_corpus
from ..llamacpp import runtime
from ..llamacpp.bindings import load
from ..llamacpp.devices import offload_params
from ..llamacpp.engine import Context, Model, Token
from ..llamacpp.token_windows import numbered_windows
from ..model.costs import bits_per_weight
from ..system.progress import Step, silent
from .answers import Encoded, answer, encode
from .batches import context_params, most_outputs
from .divergence import Divergence, Quality
from .made_files import made_files
from .positions import Bucket, buckets
from .request import EvaluateRequest
from .subjects import Subject, Subjects, chosen
from .tasks import Tasks, read_tasks


@dataclass(frozen=True)
class Score(Quality):
    """The quality of a subject, its sizes, and the fields of a Quality.

    Attributes:
        subject: What was scored.
        file_bytes: Bytes of its file or shards.
        bits_per_weight: Bits of a weight, mean over the matrices of the layers.
        bits_per_byte: NLL in bits per byte of the scored text in UTF-8.
    """

    subject: Subject
    file_bytes: int
    bits_per_weight: float
    bits_per_byte: float


@dataclass(frozen=True)
class TaskAnswers:
    """The answers to the items of one kind in one file.

    Attributes:
        tasks: The task file.
        metric: How answers are counted.
        lines: The line of each item in the file, from 1.
        right: For each subject an array [n_items], which says whether its answers are right.
    """

    tasks: Tasks
    metric: str
    lines: tuple[int, ...]
    right: tuple[npt.NDArray[np.bool_], ...]


@dataclass(frozen=True)
class TextScores:
    """The scores on one of several texts.

    Attributes:
        name: The name of the text.
        n_windows: Number of its windows.
        qualities: The quality of each subject.
    """

    name: str
    n_windows: int
    qualities: tuple[Quality, ...]


@dataclass(frozen=True)
class Evaluation:
    """The scores of all models of an evaluation.

    `scores`, the models of `positions`, the answers of each task file and the qualities of `texts` have one entry per
    subject, in the order of `subjects.all`.

    Attributes:
        request: What was asked for.
        text: The text that the models predicted.
        n_windows: Number of windows.
        n_tokens: Number of scored tokens.
        subjects: What was scored: the models, and what they are compared with.
        scores: The scores on the whole text.
        texts: The scores by text, where there are several.
        fitted: The SA models whose weights were fitted to this very text.
        positions: The scores by position in a window.
        answers: The answers to the items of task files.
    """

    request: EvaluateRequest
    text: Corpus
    n_windows: int
    n_tokens: int
    subjects: Subjects
    scores: tuple[Score, ...]
    texts: tuple[TextScores, ...]
    fitted: tuple[Subject, ...]
    positions: tuple[Bucket, ...]
    answers: tuple[TaskAnswers, ...]

    def only(self, models: Collection[Path]) -> "Evaluation":
        """Return it without the SA models that are not in `models`, and what only those were compared to."""
        subjects = self.subjects.only(models)
        kept = [subject in subjects.all for subject in self.subjects.all]
        return replace(
            self,
            subjects=subjects,
            scores=tuple(compress(self.scores, kept)),
            texts=tuple(replace(each, qualities=tuple(compress(each.qualities, kept))) for each in self.texts),
            fitted=tuple(subject for subject in self.fitted if subject in subjects.all),
            positions=tuple(replace(each, models=tuple(compress(each.models, kept))) for each in self.positions),
            answers=tuple(replace(each, right=tuple(compress(each.right, kept))) for each in self.answers),
        )


def evaluate(request: EvaluateRequest, step: Step = silent) -> Evaluation:
    """Evaluate the models of a request.

    Raises BadInput where the models do not have the same number of tokens, the text is shorter than a window, or an
    item of a task file does not fit the model; and what made_files() raises.
    """
    built = runtime.require()
    lib = load(built.python, built.bin)
    step("reading the models", None)
    half, text, dense_path = request.n_ctx // 2, read_corpus(request.text), Path(request.dense)
    tasks = tuple(read_tasks(Path(path)) for path in request.tasks)
    headers = {path: read_model(path) for path in map(Path, (request.dense, *request.others))}
    subjects = chosen(request, headers)
    with ExitStack() as stack:
        offload = offload_params(lib, request.gpu_layers, request.device)
        models = {path: stack.enter_context(Model(lib, path, **offload)) for path in headers}
        base = models[dense_path]
        for path, model in models.items():
            if model.n_vocab != base.n_vocab:
                raise BadInput(f"has {model.n_vocab} tokens, {request.dense} has {base.n_vocab}", path=path)
        encoded_tasks = [encode(base, each, subjects.dense.facts.n_ctx_train) for each in tasks]
        owners, windows = zip(*numbered_windows(base, text, request.n_ctx, request.n_windows), strict=True)
        made = stack.enter_context(made_files(headers[dense_path], subjects.all, request.n_threads, step))
        headers |= {path: read_model(path) for path in made.values()}
        models |= {path: stack.enter_context(Model(lib, path, **offload)) for path in made.values()}
        files = [made.get(subject, subject.model) for subject in subjects.all]
        loaded = [(models[file], subject.type_k) for file, subject in zip(files, subjects.all, strict=True)]
        divergences = _predict(request, loaded, windows, step)
        n_bytes = len(base.text(token for window in windows for token in window[half + 1 :]))
        answers = tuple(_answer(request, loaded, tasks, encoded_tasks, step))
    scores = [
        _score(subject, headers[file], divergence, half, n_bytes)
        for subject, file, divergence in zip(subjects.all, files, divergences, strict=True)
    ]
    return Evaluation(
        request=request,
        text=text,
        n_windows=len(windows),
        n_tokens=len(windows) * (request.n_ctx - 1 - half),
        subjects=subjects,
        scores=tuple(scores),
        texts=tuple(_by_text(text, owners, divergences, half)),
        fitted=tuple(other for other in subjects.others if headers[other.model].text(KEY_FIT_TEXT, "") == text.sha256),
        positions=buckets(divergences),
        answers=answers,
    )


Loaded = tuple[Model, GGMLQuantizationType]  # a model and the type of its K cache


def _context(request: EvaluateRequest, loaded: Loaded, **params: int | bool) -> Context:
    model, type_k = loaded
    threads = {"n_threads": request.n_threads, "n_threads_batch": request.n_threads}
    return Context(model, flash_attn=True, type_k=type_k, **threads, **params)


def _predict(
    request: EvaluateRequest, loaded: Sequence[Loaded], windows: Sequence[list[int]], step: Step
) -> list[Divergence]:
    """Run all models side by side, so that the dense model's logits are needed for one batch at a time only."""
    n = request.n_ctx
    divergences = [Divergence(len(windows), n - 1) for _ in loaded]
    batch_size = min(n, most_outputs(loaded[0][0].n_vocab))
    with ExitStack() as stack:
        contexts = [
            stack.enter_context(_context(request, one, n_ctx=n, n_batch=batch_size, n_ubatch=batch_size))
            for one in loaded
        ]
        for i, tokens in enumerate(windows):
            for context in contexts:
                context.clear()
            for start in range(0, n - 1, batch_size):
                step("evaluating", (i + start / n) / len(windows))
                end = min(start + batch_size, n - 1)
                batch = [Token(tokens[position], position) for position in range(start, end)]
                targets = np.array(tokens[start + 1 : end + 1])
                expected = None
                for context, divergence in zip(contexts, divergences, strict=True):
                    logits = context.decode(batch)
                    expected = logits if expected is None else expected  # the dense model is the first
                    divergence.add(i, start, logits, expected, targets)
    step("evaluating", 1.0)
    return divergences


def _score(subject: Subject, header: Header, divergence: Divergence, first: int, n_bytes: int) -> Score:
    """Score the tokens in the columns from `first` to the last, which stand for n_bytes of text."""
    bits = float(divergence.nll[:, first:].sum()) / n_bytes / float(np.log(2))
    return Score(
        **vars(divergence.quality(first)),
        subject=subject,
        file_bytes=header.file_size,
        bits_per_weight=bits_per_weight(header),
        bits_per_byte=bits,
    )


def _by_text(
    text: Corpus, owners: Sequence[int], divergences: Sequence[Divergence], first: int
) -> Iterator[TextScores]:
    """Yield the scores on each text that has windows, if there are several texts. `owners`: the text of each window."""
    for i, part in enumerate(text.texts if len(text.texts) > 1 else ()):
        if windows := [window for window, owner in enumerate(owners) if owner == i]:
            qualities = tuple(divergence.quality(first, windows) for divergence in divergences)
            yield TextScores(part.name, len(windows), qualities)


def _answer(
    request: EvaluateRequest,
    loaded: Sequence[Loaded],
    files: Sequence[Tasks],
    encoded_files: Sequence[list[Encoded]],
    step: Step,
) -> Iterator[TaskAnswers]:
    """Let all models answer one file after the other, in contexts that its longest item fits in."""
    n_rounds = len(files) * len(loaded)
    for i, (tasks, encoded) in enumerate(zip(files, encoded_files, strict=True)):
        given = []
        longest = max(each.n_positions for each in encoded)
        for j, one in enumerate(loaded):
            step("answering", (i * len(loaded) + j) / n_rounds)
            with _context(request, one, **context_params(longest)) as context:
                given.append(answer(context, encoded))
        for metric, by_line in given[0].items():
            right = tuple(np.array(list(each[metric].values())) for each in given)
            yield TaskAnswers(tasks, metric, tuple(by_line), right)
