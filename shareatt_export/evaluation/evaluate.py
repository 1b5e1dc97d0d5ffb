"""How well SA models predict a text and answer tasks, compared to the dense model, also with a quantised K cache.

Each model reads the same windows. As in llama-perplexity, the second half of a window is scored, so that every scored
token has at least half a window before it; the scores by position are of whole windows. KL is the divergence from the
dense model's next-token distribution to the other model's.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ..errors import BadInput
from ..formats.gguf_header import Header
from ..formats.shards import read_model
from ..formats.texts import Corpus, read_corpus
from ..llamacpp import runtime
from ..llamacpp.bindings import load
from ..llamacpp.devices import offload_params
from ..llamacpp.engine import Context, Model, Token
from ..llamacpp.token_windows import token_windows
from ..model.facts import F16, Facts, read_facts
from ..system.progress import Step, silent
from .answers import Encoded, answer, context_params, encode
from .divergence import Divergence, Quality
from .positions import Bucket, buckets
from .request import EvaluateRequest
from .tasks import Tasks, read_tasks

Q8_0 = GGMLQuantizationType.Q8_0
# K caches that flash attention reads, from the largest to the smallest; q4_0 takes as much as iq4_nl and loses more
K_TYPES = (F16, Q8_0, *(GGMLQuantizationType[name] for name in ("Q5_1", "Q5_0", "Q4_1", "IQ4_NL")))
BATCH = 512  # number of tokens whose logits are in memory at a time


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a model with a type of K cache."""

    name: str
    model: Path
    facts: Facts
    type_k: GGMLQuantizationType = F16

    @property
    def kv_bytes_per_token(self) -> int:
        return self.facts.kv_bytes_per_token(self.facts.source_layers, self.type_k)

    def with_k(self, type_k: GGMLQuantizationType) -> "Subject":
        """Return the same model with another type of K cache."""
        return Subject(f"{self.name}, K cache {type_k.name.lower()}", self.model, self.facts, type_k)


@dataclass(frozen=True)
class Score(Quality):
    """`bits_per_byte`: of the scored text, in UTF-8."""

    subject: Subject
    file_bytes: int
    bits_per_byte: float


@dataclass(frozen=True)
class TaskAnswers:
    """The answers to the items of one kind in one file.

    `lines`: the line of each item. `right`: for each subject, whether its answers are right, [n_items].
    """

    tasks: Tasks
    metric: str
    lines: tuple[int, ...]
    right: tuple[npt.NDArray[np.bool_], ...]


@dataclass(frozen=True)
class Evaluation:
    """`n_tokens`: number of scored tokens. `scores`: of each subject, the dense model first. `others`: the SA models.

    `baselines`: the baseline of each SA model, None where even the smallest K cache takes more bytes; empty if no
    baselines were asked for. `positions` and `answers` have one entry per subject, in the order of `scores`.
    """

    request: EvaluateRequest
    text: Corpus
    n_windows: int
    n_tokens: int
    scores: tuple[Score, ...]
    others: tuple[Subject, ...]
    baselines: tuple[Subject | None, ...]
    positions: tuple[Bucket, ...]
    answers: tuple[TaskAnswers, ...]


def baseline(dense: Subject, kv_bytes_per_token: int) -> Subject | None:
    """Return the dense model with the best K cache that takes no more bytes; None if even the smallest takes more."""
    for type_k in K_TYPES:
        fits = dense.facts.head_dim_k % GGML_QUANT_SIZES[type_k][0] == 0
        subject = dense if type_k == F16 else dense.with_k(type_k)
        if fits and subject.kv_bytes_per_token <= kv_bytes_per_token:
            return subject
    return None


def evaluate(request: EvaluateRequest, step: Step = silent) -> Evaluation:
    """Evaluate the models of a request.

    Raises BadInput where the models do not have the same number of tokens, the text is shorter than a window, or an
    item of a task file does not fit the model.
    """
    built = runtime.require()
    lib = load(built.python, built.bin)
    step("reading the models", None)
    half, text, dense_path = request.n_ctx // 2, read_corpus(request.text), Path(request.dense)
    tasks = tuple(read_tasks(Path(path)) for path in request.tasks)
    headers = {path: read_model(path) for path in map(Path, (request.dense, *request.others))}
    dense, *others = _subjects(request, headers)
    baselines = [baseline(dense, other.kv_bytes_per_token) for other in others] if request.baselines else []
    combined = [other.with_k(Q8_0) for other in others] if request.combined else []
    subjects = list(dict.fromkeys([dense, *others, *combined, *filter(None, baselines)]))
    with ExitStack() as stack:
        offload = offload_params(lib, request.gpu_layers, request.device)
        models = {path: stack.enter_context(Model(lib, path, **offload)) for path in headers}
        base = models[dense_path]
        for path, model in models.items():
            if model.n_vocab != base.n_vocab:
                raise BadInput(f"has {model.n_vocab} tokens, {request.dense} has {base.n_vocab}", path=path)
        encoded_tasks = [encode(base, each, dense.facts.n_ctx_train) for each in tasks]
        windows = token_windows(base, text, request.n_ctx, request.n_windows)
        loaded = [(models[subject.model], subject.type_k) for subject in subjects]
        divergences = _predict(request, loaded, windows, step)
        n_bytes = len(base.text(token for window in windows for token in window[half + 1 :]))
        answers = tuple(_answer(request, loaded, tasks, encoded_tasks, step))
    scores = [
        _score(subject, headers[subject.model].file_size, divergence, half, n_bytes)
        for subject, divergence in zip(subjects, divergences, strict=True)
    ]
    return Evaluation(
        request=request,
        text=text,
        n_windows=len(windows),
        n_tokens=len(windows) * (request.n_ctx - 1 - half),
        scores=tuple(scores),
        others=tuple(others),
        baselines=tuple(baselines),
        positions=buckets([each.nll for each in divergences], [each.kl for each in divergences]),
        answers=answers,
    )


def _subjects(request: EvaluateRequest, headers: Mapping[Path, Header]) -> Iterator[Subject]:
    """Yield the dense model and the SA models; files of the same name are named with their folders."""
    dense, others = Path(request.dense), list(map(Path, request.others))
    yield Subject("dense", dense, read_facts(headers[dense]))
    names = [path.name for path in others]
    for path in others:
        yield Subject(path.name if names.count(path.name) == 1 else str(path), path, read_facts(headers[path]))


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
    batch_size = min(n, BATCH)
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


def _score(subject: Subject, file_bytes: int, divergence: Divergence, first: int, n_bytes: int) -> Score:
    """Score the tokens in the columns from `first` to the last, which stand for n_bytes of text."""
    bits = float(divergence.nll[:, first:].sum()) / n_bytes / float(np.log(2))
    return Score(**vars(divergence.quality(first)), subject=subject, file_bytes=file_bytes, bits_per_byte=bits)


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
        for j, one in enumerate(loaded):
            step("answering", (i * len(loaded) + j) / n_rounds)
            with _context(request, one, **context_params(encoded)) as context:
                given.append(answer(context, encoded))
        for metric, by_line in given[0].items():
            right = tuple(np.array(list(each[metric].values())) for each in given)
            yield TaskAnswers(tasks, metric, tuple(by_line), right)
