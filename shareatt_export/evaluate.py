"""How well SA models predict a text, beside the dense model they were made from and that with a quantised K cache.

Each model reads the same windows. As in llama-perplexity the second half of a window is scored, so that every token has
at least half of it before it. KL is that of the next-token distributions, from the dense model's to the other's.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

from . import runtime
from .bindings import load
from .engine import Context, Model, Token
from .errors import BadInput
from .facts import F16, read_facts
from .progress import Step, silent
from .shards import read_model
from .texts import Text, windows

Q8_0, Q4_0 = GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0
Z95 = 1.96  # standard errors in half of a 95 % confidence interval
ROWS = 32  # tokens whose distributions are in memory in double precision


@dataclass(frozen=True)
class Request:
    dense: Path
    others: tuple[Path, ...]
    text: Text
    n_ctx: int = 512
    n_windows: int = 16
    n_threads: int = 2
    baselines: bool = True  # the dense model with its K cache quantised


@dataclass(frozen=True)
class Subject:
    name: str
    model: Path
    type_k: GGMLQuantizationType = F16


@dataclass(frozen=True)
class Mean:
    """Over windows; `half` is half of the 95 % confidence interval, nan for a single window."""

    value: float
    half: float


@dataclass(frozen=True)
class Score:
    subject: Subject
    file_bytes: int
    kv_bytes_per_token: int
    nll: Mean  # nats per token
    bits_per_byte: float
    kl: Mean
    kl_p99: float
    kl_max: float
    same_top: float  # share of tokens for which both would choose the same next one

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.nll.value))

    @property
    def perplexity_half(self) -> float:
        """Half of its confidence interval, which is symmetric for the logarithm only."""
        return self.perplexity * float(np.expm1(self.nll.half))


@dataclass(frozen=True)
class Evaluation:
    request: Request
    n_windows: int
    n_tokens: int  # scored
    scores: tuple[Score, ...]  # the dense model's first


@dataclass
class _Sums:
    nll: list[npt.NDArray[np.float64]] = field(default_factory=list)  # a window each
    kl: list[npt.NDArray[np.float64]] = field(default_factory=list)
    same: list[npt.NDArray[np.bool_]] = field(default_factory=list)


def subjects(request: Request) -> Iterator[Subject]:
    yield Subject("dense", request.dense)
    for model in request.others:
        yield Subject(model.name, model)
    if request.baselines:
        yield Subject("dense, K cache q8_0", request.dense, Q8_0)
        yield Subject("dense, K cache q4_0", request.dense, Q4_0)


def evaluate(request: Request, step: Step = silent) -> Evaluation:
    """Raises BadInput if the models do not have the same vocabulary, or the text is too short."""
    built = runtime.require()
    lib = load(built.python, built.bin)
    step("reading the models", None)
    everyone = list(subjects(request))
    for subject in everyone:
        read_facts(read_model(subject.model))  # a bad file gets our message, not the library's
    sums = [_Sums() for _ in everyone]
    n = request.n_ctx
    threads = {"n_threads": request.n_threads, "n_threads_batch": request.n_threads}
    with ExitStack() as stack:
        models = {path: stack.enter_context(Model(lib, path)) for path in dict.fromkeys(s.model for s in everyone)}
        dense = models[request.dense]
        for path, model in models.items():
            if model.n_vocab != dense.n_vocab:
                raise BadInput(f"{path}: has {model.n_vocab} tokens, {request.dense} has {dense.n_vocab}")
        contexts = [
            stack.enter_context(
                Context(models[s.model], True, n_ctx=n, n_batch=n, n_ubatch=min(n, 512), type_k=s.type_k, **threads)
            )
            for s in everyone
        ]
        parts = windows(dense, request.text, n, request.n_windows)
        n_bytes = 0
        for i, tokens in enumerate(parts):
            step("evaluating", i / len(parts))
            batch = [Token(token, position) for position, token in enumerate(tokens)]
            targets = np.array(tokens[n // 2 + 1 :])
            n_bytes += dense.n_bytes(targets.tolist())
            expected = None
            for context, total in zip(contexts, sums, strict=True):
                lib.llama_memory_clear(context.memory, True)
                logits = context.decode(batch)[n // 2 : -1]
                expected = logits if expected is None else expected
                _add(total, logits, expected, targets)
    step("evaluating", 1.0)
    n_tokens = sum(len(window) for window in sums[0].nll)
    scores = tuple(_score(s, total, n_tokens, n_bytes) for s, total in zip(everyone, sums, strict=True))
    return Evaluation(request, len(parts), n_tokens, scores)


def _add(
    sums: _Sums, logits: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]
) -> None:
    """One window: [n_tokens, n_vocab] of a model and of the dense one, and the tokens that came."""
    nll, kl = np.empty(len(targets)), np.empty(len(targets))
    for start in range(0, len(targets), ROWS):
        rows = slice(start, start + ROWS)
        ours, theirs = _log_softmax(logits[rows]), _log_softmax(expected[rows])
        nll[rows] = -ours[np.arange(len(ours)), targets[rows]]
        kl[rows] = (np.exp(theirs) * (theirs - ours)).sum(-1)
    sums.nll.append(nll)
    sums.kl.append(kl)
    sums.same.append(logits.argmax(-1) == expected.argmax(-1))


def _log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted: npt.NDArray[np.float64] = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def mean(per_window: Sequence[npt.NDArray[np.float64]]) -> Mean:
    """Windows are the sample: tokens of one window hang together."""
    means = np.array([window.mean() for window in per_window])
    half = Z95 * float(means.std(ddof=1)) / len(means) ** 0.5 if len(means) > 1 else float("nan")
    return Mean(float(means.mean()), half)


def _score(subject: Subject, sums: _Sums, n_tokens: int, n_bytes: int) -> Score:
    header = read_model(subject.model)
    facts = read_facts(header)
    kl = np.concatenate(sums.kl)
    nll = mean(sums.nll)
    return Score(
        subject,
        header.file_size,
        facts.kv_bytes_per_token(facts.source_layers, subject.type_k),
        nll,
        nll.value * n_tokens / n_bytes / float(np.log(2)),
        mean(sums.kl),
        float(np.quantile(kl, 0.99)),
        float(kl.max()),
        float(np.concatenate(sums.same).mean()),
    )
