"""What `shareatt-export eval` says, as a table and as JSON."""

from typing import Any

from rich.console import Console

from .evaluate import Evaluation, Score
from .report import table


def as_dict(evaluation: Evaluation) -> dict[str, Any]:
    request = evaluation.request
    return {
        "text": {"name": request.text.name, "sha256": request.text.sha256},
        "n_ctx": request.n_ctx,
        "windows": evaluation.n_windows,
        "tokens": evaluation.n_tokens,
        "scores": [_score_dict(score) for score in evaluation.scores],
    }


def _score_dict(score: Score) -> dict[str, Any]:
    return {
        "name": score.subject.name,
        "model": str(score.subject.model),
        "type_k": score.subject.type_k.name.lower(),
        "file_bytes": score.file_bytes,
        "kv_bytes_per_token": score.kv_bytes_per_token,
        "nll": {"mean": score.nll.value, "half_ci95": score.nll.half},
        "perplexity": score.perplexity,
        "bits_per_byte": score.bits_per_byte,
        "kl": {"mean": score.kl.value, "half_ci95": score.kl.half, "p99": score.kl_p99, "max": score.kl_max},
        "same_top": score.same_top,
    }


def show(evaluation: Evaluation, console: Console) -> None:
    columns = ("", "file bytes", "KV per token", "perplexity", "bits/byte", "KL", "KL p99", "KL max", "same top")
    rows = [
        (
            score.subject.name,
            f"{score.file_bytes:,}",
            str(score.kv_bytes_per_token),
            f"{score.perplexity:.2f} ± {score.perplexity_half:.2f}",
            f"{score.bits_per_byte:.3f}",
            f"{score.kl.value:.2g} ± {score.kl.half:.1g}",
            f"{score.kl_p99:.2g}",
            f"{score.kl_max:.2g}",
            f"{100 * score.same_top:.1f} %",
        )
        for score in evaluation.scores
    ]
    console.print(table(rows, columns))
    request = evaluation.request
    console.print(
        f"{evaluation.n_tokens} tokens in {evaluation.n_windows} windows of {request.n_ctx} of {request.text.name}; "
        "the second half of each is scored. ±: half of a 95 % confidence interval, over windows. KL in nats.",
        highlight=False,
    )
