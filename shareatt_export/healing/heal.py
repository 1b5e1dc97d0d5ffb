"""Healing: the layers of the spans learn to do with shared attention what the model did without.

    job = planned(request)     # checks everything, reads no weights
    job.names                  # the parameters that it will train
    done = heal(job, step)     # a Hugging Face folder, of the same form as the input

The teacher is the model as it is, see distill.py; what is trained, trained.py; what is written, rewrite.py.
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
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from .._version import __version__
from ..checkpoint.checks import check_files, own_code
from ..checkpoint.rewrite import Slot, copy_with, find_tensors
from ..errors import BadInput, BadSpans, Unsupported
from ..formats.gguf_header import Header
from ..formats.shards import read_model
from ..formats.texts import Text, read_text
from ..model.spans import Span, parse_spans, source_map
from ..system.progress import Step, silent
from ..system.staging import check_output_folder, publish_folder, staged
from ..system.streams import sha256
from . import saved_state, starting_weights, training_text
from .distill import Distiller
from .request import HealRequest
from .sharing import Sharing
from .train import Schedule, TrainingResult, train
from .trained_weights import TrainedWeights, trained_names

RECORD = "shareatt_heal.json"
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
ATTENTION_KINDS = {"full_attention": False, "sliding_attention": True}


@dataclass(frozen=True)
class HealJob:
    request: HealRequest
    folder: Path  # of the model
    texts: tuple[Text, ...]
    config: Any
    spans: tuple[Span, ...]
    names: tuple[str, ...]
    slots: Mapping[str, Slot]
    n_trained: int  # numbers that the optimizer changes
    begin: Header | None
    initial: Mapping[str, npt.NDArray[np.floating]]  # by parameter

    @property
    def device(self) -> torch.device:
        if self.request.device != "auto":
            return torch.device(self.request.device)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.request.dtype]


@dataclass(frozen=True)
class Healed:
    job: HealJob
    settings: Mapping[str, Any]
    result: TrainingResult


def planned(request: HealRequest) -> HealJob:
    """Reads no weights: refusals come before what takes long. Raises ShareattError."""
    folder = Path(request.model)
    if not folder.is_dir():
        what = "no such folder" if not folder.exists() else "not a folder"
        raise BadInput(f"{folder}: {what}; heal needs the Hugging Face folder that a GGUF is made from")
    if code := own_code(folder):
        raise Unsupported(f"{folder}: brings code of its own ({code}), which heal does not run")
    check_files(folder)
    if request.out is not None:
        check_output_folder(Path(request.out), folder, request.force, RECORD)
    if request.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda: torch finds no such device; leave it away")
    texts = tuple(map(read_text, request.texts or (None,)))
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    config = _config(folder)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    n_layer, n_most = config.num_hidden_layers, getattr(config, "max_position_embeddings", None) or request.n_ctx
    if request.n_ctx > n_most:
        raise BadInput(f"{folder}: --ctx {request.n_ctx}: the model takes {n_most} tokens")
    begin = read_model(request.begin) if request.begin else None
    spans = _job_spans(request, begin, n_layer, _is_swa(config, n_layer))
    try:
        names = trained_names(skeleton, spans, request.train_mlp)
    except Unsupported as error:
        raise Unsupported(f"{folder}: {error}") from None
    slots = find_tensors(folder, names)
    initial = starting_weights.fitted_weights(begin, skeleton) if begin else {}
    return HealJob(
        request,
        folder,
        texts,
        config,
        spans,
        names,
        slots,
        TrainedWeights(skeleton, names, request.lora_rank).n_trained,
        begin,
        initial,
    )


def _job_spans(
    request: HealRequest, begin: Header | None, n_layer: int, is_swa: tuple[bool, ...] | None
) -> tuple[Span, ...]:
    if (request.spans is None) == (begin is None):
        raise BadSpans("one of --spans and --from is needed")
    if request.spans is not None:
        return parse_spans(request.spans, n_layer, request.source, is_swa)
    assert begin is not None  # noqa: S101  (the condition above)
    return starting_weights.spans_in(begin)


def _config(folder: Path) -> Any:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        raise Unsupported(f"{folder}: config.json: transformers does not know it: {error}") from None
    kinds = config.architectures or ["(none)"]
    if config.is_encoder_decoder or not kinds[0].endswith("ForCausalLM"):
        raise Unsupported(f"{folder}: config.json: architectures: '{kinds[0]}': heal takes decoders, ...ForCausalLM")
    if getattr(config, "quantization_config", None) is not None:
        raise Unsupported(f"{folder}: config.json: quantization_config: heal trains floating-point weights only")
    return config


def _is_swa(config: Any, n_layer: int) -> tuple[bool, ...] | None:
    """As plan.py gets it from a GGUF."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return None
    if unknown := set(kinds) - ATTENTION_KINDS.keys():
        raise Unsupported(f"config.json: layer_types: '{min(unknown)}': heal knows {', '.join(ATTENTION_KINDS)}")
    return tuple(ATTENTION_KINDS[kind] for kind in kinds)[:n_layer]


def heal(job: HealJob, step: Step = silent) -> Healed:
    """Train, and write the folder of Request.out, whole or not at all. Raises ShareattError."""
    request = job.request
    if request.out is None:
        raise ValueError("a plan alone has no output")
    out = Path(request.out)
    step("reading", None)
    settings = settings_of(job)
    progress = saved_state.prepare(out, settings, request.resume, request.force)
    tokenizer = AutoTokenizer.from_pretrained(job.folder, local_files_only=True)
    windows = training_text.training_windows(tokenizer, job.texts, request.n_ctx)
    distiller = _distiller(job)
    schedule = Schedule(job.request.learning_rate, request.batch, request.seed, request.minutes_limit, request.steps)
    result = train(distiller, windows, schedule, progress, partial(saved_state.save, out, settings), step)
    done = Healed(job, settings, result)
    step("writing", None)
    with staged(out) as work:
        made = work / out.name
        made.mkdir()
        copy_with(job.folder, made, job.slots, distiller.weights.current())
        (made / RECORD).write_text(json.dumps(as_dict(done), indent=2) + "\n", encoding="utf-8")
        publish_folder(made, out, job.folder, request.force, RECORD)
    saved_state.remove(out)
    return done


def settings_of(job: HealJob) -> dict[str, Any]:
    """All that the result hangs on."""
    request = job.request
    weights = {slot.file for slot in job.slots.values()}
    return {
        "exporter": f"shareatt-export {__version__}",
        "weights": {name: sha256(job.folder / name) for name in sorted(weights)},
        "spans": ",".join(map(str, job.spans)),
        "text": [{"name": text.name, "sha256": text.sha256} for text in job.texts],
        "method": request.method,
        "rank": request.lora_rank,
        "train_mlp": request.train_mlp,
        "learning_rate": job.request.learning_rate,
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
    tokens_per_step = done.job.request.batch * done.job.request.n_ctx
    return {
        **done.settings,
        "trained": list(done.job.names),
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
    request = job.request
    model = load(job.folder, job.config, job.dtype)
    if job.begin:
        starting_weights.check_origin(job.begin, model)
    model.to(job.device)  # type: ignore[arg-type]
    stored = {name: slot.dtype for name, slot in job.slots.items()}
    weights = TrainedWeights(model, job.names, request.lora_rank, job.initial, request.seed, stored)
    sharing = Sharing(source_map(job.spans, job.config.num_hidden_layers))
    distiller = Distiller(model, sharing, weights, request.checkpointing)
    distiller.score(torch.zeros(1, 4, dtype=torch.int64))
    layers = {layer for span in job.spans for layer in (span.source, *span.followers)}
    if missed := layers - sharing.met:
        raise Unsupported(f"{job.folder}: layer {min(missed)} does not use transformers' attention interface")
    return distiller


def load(folder: Path, config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """The model with every weight from the checkpoint. Raises BadInput."""
    # With a soft cap only the eager implementation is the model; the others leave the cap away.
    how = {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **how,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"{folder}: cannot be loaded: {error}") from None
    model, info = loaded
    if missing := [*info["missing_keys"], *info["mismatched_keys"]]:
        raise BadInput(f"{folder}: no tensor for '{missing[0]}', or one of another shape")
    result: PreTrainedModel = model.eval()
    return result
