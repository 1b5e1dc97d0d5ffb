"""Plan a healing: check the request against the model and the texts before anything takes long.

job = planned(request)     # reads no weights
job.trained_names          # the parameters that healing will train
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from ..checkpoint.checks import check_files, own_code
from ..checkpoint.rewrite import Slot, find_tensors
from ..errors import BadInput, BadSpans, Unsupported
from ..formats.gguf_header import Header
from ..formats.shards import read_model
from ..formats.texts import Text, read_corpus
from ..model.spans import Span, parse_spans
from ..system.staging import check_output_folder
from . import starting_weights
from .request import HealRequest
from .trained_weights import TrainedWeights, trained_names

RECORD = "shareatt_heal.json"  # the file by which a folder is known as the output of healing
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
ATTENTION_KINDS = {"full_attention": False, "sliding_attention": True}


@dataclass(frozen=True)
class HealJob:
    """A request that passed the checks.

    `folder` is the model's, `config` is what transformers reads there, `slots` tells where in the checkpoint each
    trained parameter is. `n_trained` counts the numbers that the optimizer changes. `begin` is the SA GGUF that
    training starts with, and `initial` maps parameters to the values that they have there.
    """

    request: HealRequest
    folder: Path
    texts: tuple[Text, ...]
    config: Any
    spans: tuple[Span, ...]
    trained_names: tuple[str, ...]
    slots: Mapping[str, Slot]
    n_trained: int
    begin: Header | None
    initial: Mapping[str, npt.NDArray[np.floating]]

    @property
    def device(self) -> torch.device:
        """The device to train on; "auto" takes a GPU if there is one."""
        if self.request.device != "auto":
            return torch.device(self.request.device)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The type that the model computes in."""
        return DTYPES[self.request.dtype]


def planned(request: HealRequest) -> HealJob:
    """Check the request and return the job; reads no weights. Raises ShareattError."""
    folder = Path(request.model)
    if not folder.is_dir():
        raise BadInput(
            "no such folder" if not folder.exists() else "not a folder",
            path=folder,
            next_step="heal needs the Hugging Face folder that a GGUF is made from",
        )
    if code := own_code(folder):
        raise Unsupported(f"brings code of its own ({code}), which heal does not run", path=folder)
    check_files(folder)
    if request.out is not None:
        check_output_folder(Path(request.out), folder, request.force, RECORD)
    if request.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("torch finds no such device", field="--device cuda", next_step="leave out the option")
    texts = read_corpus(request.text).texts
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    config = _config(folder)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    n_layer, n_ctx_max = config.num_hidden_layers, getattr(config, "max_position_embeddings", None) or request.n_ctx
    if request.n_ctx > n_ctx_max:
        raise BadInput(f"the model takes {n_ctx_max} tokens", path=folder, field=f"--ctx {request.n_ctx}")
    begin = read_model(request.begin) if request.begin else None
    spans = _job_spans(request, begin, n_layer, _is_swa(folder, config, n_layer))
    try:
        names = trained_names(skeleton, spans, train_mlp=request.train_mlp)
    except Unsupported as error:  # which knows the model, but not its folder
        raise Unsupported(error.reason, path=folder, field=error.field, next_step=error.next_step) from None
    return HealJob(
        request,
        folder,
        texts,
        config,
        spans,
        names,
        slots=find_tensors(folder, names),
        n_trained=TrainedWeights(skeleton, names, request.lora_rank).n_trained,
        begin=begin,
        initial=starting_weights.fitted_weights(begin, skeleton) if begin else {},
    )


def _job_spans(
    request: HealRequest, begin: Header | None, n_layer: int, is_swa: tuple[bool, ...] | None
) -> tuple[Span, ...]:
    if request.spans is not None and begin is None:
        return parse_spans(request.spans, n_layer, request.source, is_swa)
    if request.spans is None and begin is not None:
        return starting_weights.spans_in(begin)
    raise BadSpans("one of --spans and --from is needed")


def _config(folder: Path) -> Any:
    """Return transformers' config of the model. Raises Unsupported unless it is a decoder in floating point."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        raise Unsupported(f"transformers does not know it: {error}", path=folder, field="config.json") from None
    kinds = config.architectures or ["(none)"]
    if config.is_encoder_decoder or not kinds[0].endswith("ForCausalLM"):
        field = f"config.json: architectures: '{kinds[0]}'"
        raise Unsupported("heal takes decoders, ...ForCausalLM", path=folder, field=field)
    if getattr(config, "quantization_config", None) is not None:
        field = "config.json: quantization_config"
        raise Unsupported("heal trains floating-point weights only", path=folder, field=field)
    return config


def _is_swa(folder: Path, config: Any, n_layer: int) -> tuple[bool, ...] | None:
    """Return for each layer whether it attends to a sliding window; None if the config does not tell."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return None
    if unknown := set(kinds) - ATTENTION_KINDS.keys():
        field = f"config.json: layer_types: '{min(unknown)}'"
        raise Unsupported(f"heal knows {', '.join(ATTENTION_KINDS)}", path=folder, field=field)
    return tuple(ATTENTION_KINDS[kind] for kind in kinds)[:n_layer]
