"""What `shareatt-export eval` says, as tables and as JSON."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from ..evaluation.evaluate import Evaluation, Score, TaskAnswers, TextScores
from ..evaluation.intervals import sign_test, wilson
from ..evaluation.positions import Bucket, PositionScores
from ..evaluation.subjects import WEIGHT_TYPES
from ..model.attention_map import without_layers
from .corpora import MATTERS, corpus_dict
from .provenance import provenance, shape_dict, sources_list
from .qualities import QUALITY_CELLS, mean_dict, quality_cells, quality_dict, with_interval
from .tables import compact, plain, table


def as_dict(evaluation: Evaluation) -> dict[str, Any]:
    request = evaluation.request
    names = [score.subject.name for score in evaluation.scores]
    data: dict[str, Any] = {
        "shape": shape_dict(evaluation.subjects.dense.facts),
        "text": corpus_dict(evaluation.text),
        "n_ctx": request.n_ctx,
        "windows": evaluation.n_windows,
        "tokens": evaluation.n_tokens,
        "scores": [_score_dict(score) for score in evaluation.scores],
        "texts": [_text_dict(scores, names) for scores in evaluation.texts],
        "fitted_to_this_text": [subject.name for subject in evaluation.fitted],
        "positions": [_bucket_dict(bucket, names) for bucket in evaluation.positions],
        "tasks": [_answers_dict(answers, names) for answers in evaluation.answers],
    }
    subjects = evaluation.subjects
    for key, name, found in (("baselines", "baseline", subjects.baselines), ("dropped", "dropped", subjects.dropped)):
        if found:
            data[key] = [
                {"name": other.name, name: each.name if each else None}
                for other, each in zip(subjects.others, found, strict=True)
            ]
    if subjects.why_no_weights:
        data["why_no_weights"] = subjects.why_no_weights
    data["provenance"] = provenance([request.dense, *request.others])
    return data


def _text_dict(scores: TextScores, names: list[str]) -> dict[str, Any]:
    models = [{"name": name, **quality_dict(quality)} for name, quality in zip(names, scores.qualities, strict=True)]
    return {"name": scores.name, "windows": scores.n_windows, "models": models}


def _score_dict(score: Score) -> dict[str, Any]:
    return {
        "name": score.subject.name,
        "model": str(score.subject.model),
        "type_k": score.subject.type_k.name.lower(),
        "weights": score.subject.weights,
        "without_attention": list(score.subject.without),
        "source_heads": sources_list(without_layers(score.subject.facts.attention, score.subject.without)),
        "file_bytes": score.file_bytes,
        "bits_per_weight": score.bits_per_weight,
        "kv_bytes_per_token": score.subject.kv_bytes_per_token,
        "bits_per_byte": score.bits_per_byte,
        **quality_dict(score),
    }


def _bucket_dict(bucket: Bucket, names: list[str]) -> dict[str, Any]:
    def model(name: str, at: PositionScores) -> dict[str, Any]:
        return {
            "name": name,
            "nll": mean_dict(at.nll),
            "kl": mean_dict(at.kl),
            "log_perplexity_ratio": mean_dict(at.log_ratio),
        }

    models = [model(name, at) for name, at in zip(names, bucket.models, strict=True)]
    return {"first": bucket.first, "last": bucket.last, "models": models}


def _answers_dict(answers: TaskAnswers, names: list[str]) -> dict[str, Any]:
    def model(name: str, right: npt.NDArray[np.bool_]) -> dict[str, Any]:
        lost, won = flips(answers, right)
        n_right = int(right.sum())
        return {
            "name": name,
            "accuracy": n_right / len(right),
            "ci95": wilson(n_right, len(right)),
            "lost_lines": lost,
            "won_lines": won,
            "p": sign_test(len(lost), len(won)),
        }

    return {
        "file": str(answers.tasks.path),
        "sha256": answers.tasks.sha256,
        "metric": answers.metric,
        "items": len(answers.lines),
        "models": [model(name, right) for name, right in zip(names, answers.right, strict=True)],
    }


def flips(answers: TaskAnswers, right: npt.NDArray[np.bool_]) -> tuple[list[int], list[int]]:
    """Return the lines of the items that only the dense model answers right, and of those that only this one does."""
    dense, lines = answers.right[0], np.array(answers.lines)
    return lines[dense & ~right].tolist(), lines[right & ~dense].tolist()


def show(evaluation: Evaluation, positions: bool, console: Console) -> None:
    def say(sentence: str) -> None:
        console.print(plain(sentence), highlight=False)

    console.print(_scores(evaluation, console.width))
    for sentence in (measured_on(evaluation), *comparisons(evaluation)):
        say(sentence)
    if evaluation.texts:
        console.print(_texts(evaluation))
        say("KL, perplexity, and by how much it is higher than that of the dense model, on each text.")
    if positions:
        console.print(_positions(evaluation))
        say("By the position of the predicted token in its window. Ratio: perplexity divided by the dense model's.")
    if evaluation.answers:
        console.print(compact(table(answer_rows(evaluation), ANSWER_COLUMNS), n_names=2))
        say(answers_legend())


def measured_on(evaluation: Evaluation) -> str:
    windows = f"{evaluation.n_windows} window{'s' * (evaluation.n_windows != 1)}"
    return (
        f"{evaluation.n_tokens} tokens in {windows} of {evaluation.request.n_ctx} of "
        f"{evaluation.text.name}; the second half of each is scored. "
        "±: half of a 95 % confidence interval, over windows. Change: of the perplexity, against the dense model on "
        "the same windows. KV/token: bytes of the KV cache. KL in nats. "
        f"{MATTERS}"
    )


def comparisons(evaluation: Evaluation) -> Iterator[str]:
    """Yield a sentence about each way to make the dense model smaller that the SA models are compared with."""
    subjects = evaluation.subjects
    if evaluation.fitted:
        names = ", ".join(subject.name for subject in evaluation.fitted)
        yield f"{names}: fitted to this very text, so expect a larger loss on others; name one with --text."
    for what, found in (
        ("The dense model with the best K cache that takes no more bytes", subjects.baselines),
        ("The dense model without attention in the layers that share, which then need no KV cache", subjects.dropped),
    ):
        pairs = zip(subjects.others, found, strict=False)
        if named := [f"for {other.name} {each.name if each else 'none'}" for other, each in pairs]:
            yield f"{what}: {'; '.join(named)}."
    if subjects.weights:
        bits = [f"{score.subject.weights} {score.bits_per_weight:.1f}" for score in evaluation.scores
                if score.subject.weights]  # fmt: skip
        n_embd = subjects.dense.facts.n_embd
        fallback = f" llama-quantize takes types of more bits for rows of {n_embd}." if n_embd % K_BLOCK else ""
        yield f"Bits per weight: {', '.join(bits)}; dense {evaluation.scores[0].bits_per_weight:.1f}.{fallback}"
    if subjects.why_no_weights:
        yield f"The dense model is not quantised to {' and '.join(WEIGHT_TYPES)}: {subjects.why_no_weights}."


def _texts(evaluation: Evaluation) -> Table:
    rows = []
    for i, score in enumerate(evaluation.scores):
        qualities = [each.qualities[i] for each in evaluation.texts]
        rows.append((score.subject.name, *(" / ".join(quality_cells(each, TEXT_COLUMNS)) for each in qualities)))
    return table(rows, ("", *(plain(each.name) for each in evaluation.texts)))


def _scores(evaluation: Evaluation, width: int) -> Table:
    """Return the table of the scores; where it does not fit the width, without the columns of least interest."""
    shown = [title for title in SCORE_COLUMNS if width >= WIDE or title not in ("bits/byte", "KL p99", "KL max")]
    rows = ((score.subject.name, *(SCORE_COLUMNS[title](score) for title in shown)) for score in evaluation.scores)
    return compact(table(rows, ("", *shown)), n_names=1)


TEXT_COLUMNS = ("KL", "perplexity", "change")
K_BLOCK = 256  # numbers in a block of Q4_K and Q3_K
WIDE = 110  # characters of a terminal that shows all columns
SCORE_COLUMNS: dict[str, Callable[[Score], str]] = {
    "file bytes": lambda score: f"{score.file_bytes:,}",
    "KV/token": lambda score: str(score.subject.kv_bytes_per_token),
    "bits/byte": lambda score: f"{score.bits_per_byte:.3f}",
    **QUALITY_CELLS,
}


def _positions(evaluation: Evaluation) -> Table:
    rows = []
    for i, score in enumerate(evaluation.scores):
        for bucket in evaluation.positions:
            at = bucket.models[i]
            ratio = math.exp(at.log_ratio.value)
            rows.append(
                (
                    score.subject.name if bucket is evaluation.positions[0] else "",
                    f"{bucket.first}-{bucket.last}",
                    f"{math.exp(at.nll.value):.2f}",
                    f"{ratio:.3f} ± {ratio * math.expm1(at.log_ratio.half):.3f}",
                    with_interval(at.kl, ".2g", ".1g"),
                )
            )
    return compact(table(rows, ("", "position", "perplexity", "ratio", "KL")), n_names=1)


ANSWER_COLUMNS = ("task", "", "right", "accuracy", "interval", "lost", "won", "p")


def answer_rows(evaluation: Evaluation) -> Iterator[tuple[str, ...]]:
    for answers in evaluation.answers:
        for score, right in zip(evaluation.scores, answers.right, strict=True):
            lost, won = map(len, flips(answers, right))
            first = right is answers.right[0]
            low, high = wilson(int(right.sum()), len(right))
            yield (
                f"{answers.tasks.path.name}, {answers.metric}" if first else "",
                score.subject.name,
                f"{right.sum()}/{len(right)}",
                f"{100 * right.mean():.1f} %",
                f"{100 * low:.1f}-{100 * high:.1f}",
                *(("", "", "") if first else (str(lost), str(won), f"{sign_test(lost, won):.2g}")),
            )


def answers_legend() -> str:
    return (
        "Intervals are Wilson's, 95 %. Lost and won: items that only the dense model, or only this model, answers "
        "right; p: the probability of a split this uneven if both models were equally good (exact sign test)."
    )
