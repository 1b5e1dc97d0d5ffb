"""Healing: train the layers of the spans so that they work with shared attention as the model worked without.

    job = planned(request)     # see job.py
    done = heal(job)           # writes a Hugging Face folder, of the same form as the input

The teacher is the unchanged model, see distill.py; trained_weights.py chooses what is trained.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from .._version import __version__
from ..checkpoint.rewrite import copy_with
from ..errors import BadInput, Unsupported
from ..model.spans import source_map, spans_text
from ..system.progress import Step, silent
from ..system.staging import publish_folder, staged
from ..system.streams import sha256
from . import saved_state, starting_weights
from .distill import Distiller
from .job import RECORD, HealJob
from .sharing import Sharing
from .train import Schedule, TrainingResult, train
from .trained_weights import TrainedWeights
from .training_text import training_windows


@dataclass(frozen=True)
class Healed:
    """A finished healing; `settings` are those of settings_of()."""

    job: HealJob
    settings: Mapping[str, Any]
    result: TrainingResult


def heal(job: HealJob, progress: Step = silent) -> Healed:
    """Train, and write the folder `job.request.out`, completely or not at all. Raises ShareattError.

    Raises ValueError if the request has no `out`, because it asks only for a plan.
    """
    request = job.request
    if request.out is None:
        raise ValueError("a plan alone has no output")
    out = Path(request.out)
    progress("reading", None)
    settings = settings_of(job)
    saved = saved_state.prepare(out, settings, resume=request.resume, force=request.force)
    tokenizer = AutoTokenizer.from_pretrained(job.folder, local_files_only=True)
    windows = training_windows(tokenizer, job.texts, request.n_ctx)
    distiller = _distiller(job)
    schedule = Schedule(request.learning_rate, request.batch, request.seed, request.minutes_limit, request.steps)
    result = train(distiller, windows, schedule, saved, partial(saved_state.save, out, settings), progress)
    done = Healed(job, settings, result)
    progress("writing", None)
    with staged(out) as work:
        folder = work / out.name
        folder.mkdir()
        copy_with(job.folder, folder, job.slots, distiller.weights.current())
        (folder / RECORD).write_text(json.dumps(as_dict(done), indent=2) + "\n", encoding="utf-8")
        publish_folder(folder, out, job.folder, request.force, RECORD)
    saved_state.remove(out)
    return done


def settings_of(job: HealJob) -> dict[str, Any]:
    """Return everything that the result depends on, as JSON values; a run with other settings is another run."""
    request = job.request
    weights = {slot.file for slot in job.slots.values()}
    return {
        "exporter": f"shareatt-export {__version__}",
        "weights": {name: sha256(job.folder / name) for name in sorted(weights)},
        "spans": spans_text(job.spans),
        "text": [{"name": text.name, "sha256": text.sha256} for text in job.texts],
        "method": request.method,
        "rank": request.lora_rank,
        "train_mlp": request.train_mlp,
        "learning_rate": request.learning_rate,
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


def as_dict(done: Healed) -> dict[str, Any]:
    """Return the record that the output folder gets, which the command also prints with --json."""
    tokens_per_step = done.job.request.batch * done.job.request.n_ctx
    return {
        **done.settings,
        "trained": list(done.job.trained_names),
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


def _distiller(job: HealJob) -> Distiller:
    """Load the model, and run it once. Raises BadInput or Unsupported if it cannot be healed."""
    request = job.request
    model = load(job.folder, job.config, job.dtype)
    if job.begin:
        starting_weights.check_origin(job.begin, model)
    model.to(job.device)  # type: ignore[arg-type]
    stored = {name: slot.dtype for name, slot in job.slots.items()}
    weights = TrainedWeights(model, job.trained_names, request.lora_rank, job.initial, request.seed, stored)
    sharing = Sharing(source_map(job.spans, job.config.num_hidden_layers))
    distiller = Distiller(model, sharing, weights, request.checkpointing)
    distiller.score(torch.zeros(1, 4, dtype=torch.int64))  # only a forward pass shows which layers Sharing reaches
    layers = {layer for span in job.spans for layer in (span.source, *span.followers)}
    if missed := layers - sharing.reached:
        raise Unsupported(f"layer {min(missed)} does not use transformers' attention interface", path=job.folder)
    return distiller


def load(folder: Path, config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model of the folder. Raises BadInput unless the checkpoint has a tensor for every weight."""
    # transformers applies the soft cap of attention scores only in the eager implementation
    options = {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"cannot be loaded: {error}", path=folder) from None
    model, info = loaded
    if missing := [*info["missing_keys"], *info["mismatched_keys"]]:
        raise BadInput(f"no tensor for '{missing[0]}', or one of another shape", path=folder)
    result: PreTrainedModel = model.eval()
    return result
