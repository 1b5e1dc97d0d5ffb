"""How well SA models predict a text and answer tasks, beside the dense model and that with a quantised K cache.

Each model reads the same windows. As in llama-perplexity the second half of a window is scored, so that every token has
at least half of it before it; by position all of it is. KL is that of the next-token distributions, from the dense
model's to the other's.
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
from ..formats.texts import Text, read_text
from ..llamacpp import runtime
from ..llamacpp.bindings import load
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
BATCH = 512  # tokens whose logits are in memory


@dataclass(frozen=True)
class Subject:
    name: str
    model: Path
    facts: Facts
    type_k: GGMLQuantizationType = F16

    @property
    def kv_bytes_per_token(self) -> int:
        return self.facts.kv_bytes_per_token(self.facts.source_layers, self.type_k)

    def with_k(self, type_k: GGMLQuantizationType) -> "Subject":
        return Subject(f"{self.name}, K cache {type_k.name.lower()}", self.model, self.facts, type_k)


@dataclass(frozen=True)
class Score(Quality):
    subject: Subject
    file_bytes: int
    bits_per_byte: float


@dataclass(frozen=True)
class TaskAnswers:
    """To the items of one kind in one file."""

    tasks: Tasks
    metric: str
    lines: tuple[int, ...]
    right: tuple[npt.NDArray[np.bool_], ...]  # of each subject


@dataclass(frozen=True)
class Evaluation:
    request: EvaluateRequest
    text: Text
    n_windows: int
    n_tokens: int  # scored
    scores: tuple[Score, ...]  # the dense model's first
    others: tuple[Subject, ...]
    baselines: tuple[Subject | None, ...]  # of the others, if asked for
    positions: tuple[Bucket, ...]
    answers: tuple[TaskAnswers, ...]


def baseline(dense: Subject, kv_bytes_per_token: int) -> Subject | None:
    """The dense model with the best K cache that takes no more bytes; None where even the smallest takes more."""
    for type_k in K_TYPES:
        fits = dense.facts.head_dim_k % GGML_QUANT_SIZES[type_k][0] == 0
        subject = dense if type_k == F16 else dense.with_k(type_k)
        if fits and subject.kv_bytes_per_token <= kv_bytes_per_token:
            return subject
    return None


def evaluate(request: EvaluateRequest, step: Step = silent) -> Evaluation:
    """Raises BadInput if the models do not have the same vocabulary, the text is too short, or a task too long."""
    built = runtime.require()
    lib = load(built.python, built.bin)
    step("reading the models", None)
    half, text, dense_path = request.n_ctx // 2, read_text(request.text), Path(request.dense)
    tasks = tuple(read_tasks(Path(path)) for path in request.tasks)
    headers = {path: read_model(path) for path in map(Path, (request.dense, *request.others))}
    dense, *others = _subjects(request, headers)
    found = [baseline(dense, other.kv_bytes_per_token) for other in others] if request.baselines else []
    combined = [other.with_k(Q8_0) for other in others] if request.combined else []
    everyone = list(dict.fromkeys([dense, *others, *combined, *filter(None, found)]))
    with ExitStack() as stack:
        models = {path: stack.enter_context(Model(lib, path)) for path in headers}
        base = models[dense_path]
        for path, model in models.items():
            if model.n_vocab != base.n_vocab:
                raise BadInput(f"{path}: has {model.n_vocab} tokens, {request.dense} has {base.n_vocab}")
        sheets = [encode(base, each, dense.facts.n_ctx_train) for each in tasks]
        parts = token_windows(base, text, request.n_ctx, request.n_windows)
        loaded = [(models[s.model], s.type_k) for s in everyone]
        sums = _predict(request, loaded, parts, step)
        n_bytes = len(base.text(token for part in parts for token in part[half + 1 :]))
        answers = list(_answer(request, loaded, tasks, sheets, step))
    scores = [
        _score(s, headers[s.model].file_size, total, half, n_bytes) for s, total in zip(everyone, sums, strict=True)
    ]
    positions = buckets([total.nll for total in sums], [total.kl for total in sums])
    n_tokens = len(parts) * (request.n_ctx - 1 - half)
    return Evaluation(
        request, text, len(parts), n_tokens, tuple(scores), tuple(others), tuple(found), positions, tuple(answers)
    )


def _subjects(request: EvaluateRequest, headers: Mapping[Path, Header]) -> Iterator[Subject]:
    dense, others = Path(request.dense), list(map(Path, request.others))
    yield Subject("dense", dense, read_facts(headers[dense]))
    names = [path.name for path in others]
    for path in others:
        yield Subject(path.name if names.count(path.name) == 1 else str(path), path, read_facts(headers[path]))


Loaded = tuple[Model, GGMLQuantizationType]  # and the type of its K cache


def _context(request: EvaluateRequest, loaded: Loaded, **params: int | bool) -> Context:
    model, type_k = loaded
    threads = {"n_threads": request.n_threads, "n_threads_batch": request.n_threads}
    return Context(model, True, type_k=type_k, **threads, **params)


def _predict(
    request: EvaluateRequest, loaded: Sequence[Loaded], parts: Sequence[list[int]], step: Step
) -> list[Divergence]:
    n = request.n_ctx
    sums = [Divergence(len(parts), n - 1) for _ in loaded]
    batch_size = min(n, BATCH)
    with ExitStack() as stack:
        contexts = [
            stack.enter_context(_context(request, one, n_ctx=n, n_batch=batch_size, n_ubatch=batch_size))
            for one in loaded
        ]
        for i, tokens in enumerate(parts):
            for context in contexts:
                context.clear()
            for start in range(0, n - 1, batch_size):
                step("evaluating", (i + start / n) / len(parts))
                end = min(start + batch_size, n - 1)
                batch = [Token(tokens[position], position) for position in range(start, end)]
                targets = np.array(tokens[start + 1 : end + 1])
                expected = None
                for context, total in zip(contexts, sums, strict=True):
                    logits = context.decode(batch)
                    expected = logits if expected is None else expected
                    total.add(i, start, logits, expected, targets)
    step("evaluating", 1.0)
    return sums


def _score(subject: Subject, file_bytes: int, sums: Divergence, first: int, n_bytes: int) -> Score:
    """Of the columns from `first` on."""
    bits = float(sums.nll[:, first:].sum()) / n_bytes / float(np.log(2))
    return Score(**vars(sums.quality(first)), subject=subject, file_bytes=file_bytes, bits_per_byte=bits)


def _answer(
    request: EvaluateRequest,
    loaded: Sequence[Loaded],
    files: Sequence[Tasks],
    sheets: Sequence[list[Encoded]],
    step: Step,
) -> Iterator[TaskAnswers]:
    """All models answer one file after the other, in contexts that its longest item fits in."""
    n_rounds = len(sheets) * len(loaded)
    for i, (tasks, sheet) in enumerate(zip(files, sheets, strict=True)):
        given = []
        for j, one in enumerate(loaded):
            step("answering", (i * len(loaded) + j) / n_rounds)
            with _context(request, one, **context_params(sheet)) as context:
                given.append(answer(context, sheet))
        for metric, by_line in given[0].items():
            right = tuple(np.array(list(each[metric].values())) for each in given)
            yield TaskAnswers(tasks, metric, tuple(by_line), right)
