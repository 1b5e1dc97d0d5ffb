"""Healing: train the layers of the spans so that they work with shared attention as the model worked without.

    job = planned(request)     # see job.py
    done = heal(job)           # writes a Hugging Face folder of a folder, an SA GGUF of a GGUF

The teacher is the unchanged model, see distill.py; parts.py chooses what is trained.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .._version import __version__
from ..errors import Unsupported
from ..evaluation.divergence import Quality
from ..model.attention_map import AttentionMap
from ..system.progress import Step, silent
from . import saved_state
from .distill import Distiller
from .job import HealJob
from .sharing import GroupSharing, Sharing
from .step_size import measured_rate
from .train import Schedule, TrainingResult, train
from .trained_weights import TrainedWeights


@dataclass(frozen=True)
class Healed:
    """A finished healing.

    Attributes:
        job: What was done: `job.request`, and the parts that were trained.
        settings: Everything that the result depends on, as JSON values; the output has them, too.
        learning_rate: That of the request, or what was measured.
        result: The scores on held-out windows during the training.
        written: How the runtime scores the SA GGUF on these windows; None for a Hugging Face folder.
    """

    job: HealJob
    settings: Mapping[str, Any]
    learning_rate: float
    result: TrainingResult
    written: Quality | None = None


def heal(job: HealJob, progress: Step = silent) -> Healed:
    """Train, and write `job.request.out`, completely or not at all. Raises ShareattError.

    Raises ValueError if the request has no `out`, because it asks only for a plan.
    """
    request, model = job.request, job.model
    if request.out is None:
        raise ValueError("a plan alone has no output")
    out = Path(request.out)
    torch.set_num_threads(request.n_threads)
    progress("reading", None)
    settings = settings_of(job)
    saved = saved_state.prepare(out, settings, resume=request.resume, force=request.force)
    windows = model.windows(job.texts, request.n_ctx, progress)
    distiller = _distiller(job)
    rate = saved.rate if saved else request.learning_rate
    rate = rate or measured_rate(distiller, windows.batch(0, request.batch, request.seed))
    distiller.weights.stored = model.stored(distiller, windows.train)
    schedule = Schedule(rate, request.batch, request.seed, request.minutes_limit, request.steps)
    result = train(distiller, windows, schedule, saved, partial(saved_state.save, out, settings), progress)
    done = Healed(job, settings, rate, result)
    progress("writing", None)
    model.write(distiller.weights, record(done), out, request.force)
    saved_state.remove(out)
    progress("measuring the file", None)
    return replace(done, written=model.measured(out, windows.held_out))


def settings_of(job: HealJob) -> dict[str, Any]:
    """Return everything that the result depends on, as JSON values; a run with other settings is another run."""
    request = job.request
    return {
        "exporter": f"shareatt-export {__version__}",
        "weights": job.model.identity(),
        "spans": job.map_text,
        "text": [{"name": text.name, "sha256": text.sha256} for text in job.texts],
        "self_text": request.self_text,
        "method": request.method,
        "rank": request.lora_rank,
        "train_mlp": request.train_mlp,
        "learning_rate": request.learning_rate or "measured",
        "ctx": request.n_ctx,
        "batch": request.batch,
        "minutes": request.minutes_limit,
        "steps": request.steps,
        "dtype": str(job.dtype).removeprefix("torch."),
        "device": job.device.type,
        "seed": request.seed,
        "initial": _digest(job.initial),
    }


def _digest(arrays: Mapping[str, npt.NDArray[np.floating]]) -> str | None:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + np.ascontiguousarray(arrays[name], np.float32).tobytes())
    return digest.hexdigest() if arrays else None


def record(done: Healed) -> dict[str, Any]:
    """Return the record that the output gets."""
    tokens_per_step = done.job.request.batch * done.job.request.n_ctx
    return {
        **done.settings,
        "learning_rate": done.learning_rate,
        "trained": [part.name for part in done.job.parts],
        "n_trained": done.job.n_trained,
        "tokens": done.result.steps * tokens_per_step,
        "seconds": round(done.result.seconds, 1),
        "perplexity_dense": math.exp(done.result.curve[0].scores.nll_teacher),
        "held_out": [
            {
                "tokens": point.step * tokens_per_step,
                "seconds": round(point.seconds, 1),
                "perplexity": math.exp(point.scores.nll),
                "kl": point.scores.kl,
            }
            for point in done.result.curve
        ],
    }


def as_dict(done: Healed) -> dict[str, Any]:
    """Return the record, and what the runtime measured on the written file, if it could."""
    if (written := done.written) is None:
        return record(done)
    measured = {"perplexity": written.perplexity, "kl": written.kl.value, "same_top": written.same_top.value}
    return record(done) | {"written": measured}


def _distiller(job: HealJob) -> Distiller:
    """Load the model, and run it once. Raises BadInput or Unsupported if it cannot be healed."""
    request, attention = job.request, job.attention
    model = job.model.load(job.dtype)
    job.model.check_origin(model)
    model.to(job.device)  # type: ignore[arg-type]
    weights = TrainedWeights(model, job.parts, request.lora_rank, job.initial, request.seed)
    sharing = GroupSharing(attention) if isinstance(attention, AttentionMap) else Sharing(attention)
    distiller = Distiller(model, sharing, weights, request.checkpointing)
    distiller.score(torch.zeros(1, 4, dtype=torch.int64))  # only a forward pass shows which layers Sharing reaches
    if missed := sharing.needed - sharing.reached:
        reason = f"layer {min(missed)} does not use transformers' attention interface"
        raise Unsupported(reason, path=job.model.path)
    return distiller
