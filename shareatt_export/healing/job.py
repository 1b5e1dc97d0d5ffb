"""Plan a healing: check the request against the model and the texts before anything takes long.

job = planned(request)     # reads no weights
job.parts                  # what healing will train
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from ..checkpoint.rewrite import find_tensors
from ..errors import BadInput, BadSpans, Unsupported
from ..exporting.verify import dense_order
from ..formats.gguf_header import Header
from ..formats.identity import tensors_blake3
from ..formats.shards import read_model
from ..formats.texts import Corpus, Text, read_corpus
from ..llamacpp import runtime
from ..model.attention_map import AttentionMap
from ..model.facts import Facts, read_facts
from ..model.map_text import map_text
from ..model.spans import SourceMap, Span, parse_spans, source_map, spans_of, spans_text
from ..plan.make_plan import make_plan
from ..plan.projections import Fitting, trained_roles
from ..system.staging import check_output, check_output_folder
from . import checkpoint_model, gguf_weights, starting_weights
from .checkpoint_model import RECORD, CheckpointModel
from .dense_model import DenseModel
from .gguf_model import GgufModel
from .parts import Part, Roles, roles_of, trained_parts
from .request import HealRequest
from .self_text import SelfText
from .trained_weights import TrainedWeights

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class HealJob:
    """A request that passed the checks.

    `attention`: a source map of layers, or a map of KV groups. `shapes` are those of the trained parts, by the name of
    the parameter; `n_trained` counts the numbers that the optimizer changes. `initial` maps parameters to the values
    that training starts with, where --from has others.
    """

    request: HealRequest
    model: DenseModel
    texts: tuple[Text, ...]
    attention: SourceMap | AttentionMap
    parts: tuple[Part, ...]
    shapes: Mapping[str, tuple[int, ...]]
    n_trained: int
    initial: Mapping[str, npt.NDArray[np.floating]]

    @property
    def device(self) -> torch.device:
        """The device to train on; "auto" takes a GPU if there is one."""
        if self.request.device != "auto":
            return torch.device(self.request.device)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def map_text(self) -> str:
        """The map as text."""
        if isinstance(self.attention, AttentionMap):
            return map_text(self.attention)
        return spans_text(spans_of(self.attention))

    @property
    def dtype(self) -> torch.dtype:
        """The type that the model computes in."""
        return DTYPES[self.request.dtype]


def planned(request: HealRequest) -> HealJob:
    """Check the request and return the job; reads no weights. Raises ShareattError."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    path = Path(request.model)
    if not path.exists():
        raise BadInput("no such file or folder", path=path)
    begin = read_model(request.begin) if request.begin else None
    if path.is_dir():
        checkpoint_model.check_folder(path)
        _check_device(request)
        if request.out is not None:
            check_output_folder(Path(request.out), path, request.force, RECORD)
        return _of_folder(path, begin, request)
    header = read_model(path)
    runtime.require()  # before anything that takes long
    _check_device(request)
    if request.out is not None:
        check_output(Path(request.out), [*header.files, *(begin.files if begin else ())], request.force)
    return _of_gguf(header, begin, request)


def _of_folder(folder: Path, begin: Header | None, request: HealRequest) -> HealJob:
    if request.self_text:
        raise Unsupported(
            "only a GGUF can write its own text", path=folder, field="--self-text", next_step="see --text"
        )
    texts = read_corpus(request.text).texts
    skeleton = _skeleton(folder, config := checkpoint_model.read_config(folder), request)
    spans = _spans(request, begin, config.num_hidden_layers, checkpoint_model.is_swa(folder, config))
    parts = _parts(skeleton, roles_of(spans), request, folder)
    model = CheckpointModel(folder, config, find_tensors(folder, [part.name for part in parts]), begin)
    initial = starting_weights.fitted_weights(begin, skeleton) if begin else {}
    return _job(request, model, texts, source_map(spans, config.num_hidden_layers), parts, skeleton, initial)


def _of_gguf(header: Header, begin: Header | None, request: HealRequest) -> HealJob:
    if request.text and request.self_text:
        raise BadInput("exclude each other", field="--text and --self-text", next_step="leave one of them out")
    corpus = Corpus(()) if request.self_text else read_corpus(request.text)
    facts = read_facts(header)
    if facts.is_shared:
        next_step = "heal the dense GGUF that it was made from, and name this file with --from"
        raise Unsupported("shares attention already", path=header.path, next_step=next_step)
    own = (
        SelfText(tensors_blake3(header), request.self_text, request.n_ctx, request.seed) if request.self_text else None
    )
    attention = _attention(request, begin, facts)
    fitted = Fitting.from_header(begin) if begin else None
    fitting = Fitting(
        align=fitted is not None and fitted.align,
        refit=fitted is not None and fitted.refit,
        text_sha256=own.sha256 if own else corpus.sha256,
        heal=True,
        mlp=request.train_mlp or (fitted is not None and fitted.mlp),
    )
    plan = make_plan(header, facts, attention, fitting)  # which knows what llama.cpp can run
    skeleton = _skeleton(header.path, config := gguf_weights.read_config(header, facts), request)
    layers = attention.source_layers
    roles = trained_roles(attention) if layers is None else roles_of(spans_of(layers))
    parts = _parts(skeleton, roles, request, header.path)
    model = GgufModel(header, facts, config, skeleton, parts, plan, begin, own)
    shared = attention if layers is None else layers
    return _job(request, model, corpus.texts, shared, parts, skeleton, model.initial())


def _attention(request: HealRequest, begin: Header | None, facts: Facts) -> AttentionMap:
    """Return the map of --spans, or of the file of --from. Raises Unsupported for a map of groups that was healed."""
    if begin is None or (found := read_facts(begin)).attention.source_layers is not None or request.spans is not None:
        spans = _spans(request, begin, facts.n_layer, facts.is_swa)
        return facts.of_layers(source_map(spans, facts.n_layer))
    if (fitting := Fitting.from_header(begin)) and fitting.heal:
        next_step = "begin with a file that --refit made"
        raise Unsupported("was healed already", path=begin.path, field="--from", next_step=next_step)
    return dense_order(begin, found, facts)


def _job(
    request: HealRequest,
    model: DenseModel,
    texts: tuple[Text, ...],
    attention: SourceMap | AttentionMap,
    parts: tuple[Part, ...],
    skeleton: PreTrainedModel,
    initial: Mapping[str, npt.NDArray[np.floating]],
) -> HealJob:
    shapes = {part.name: tuple(part.of(skeleton.get_parameter(part.name)).shape) for part in parts}
    n_trained = TrainedWeights(skeleton, parts, request.lora_rank).n_trained
    return HealJob(request, model, texts, attention, parts, shapes, n_trained, initial)


def _check_device(request: HealRequest) -> None:
    if request.device == "cuda" and not torch.cuda.is_available():
        raise BadInput("torch finds no such device", field="--device cuda", next_step="leave out the option")


def _skeleton(path: Path, config: Any, request: HealRequest) -> PreTrainedModel:
    """Return the model without memory for its parameters. Raises BadInput if it does not take windows of --ctx."""
    with torch.device("meta"):
        skeleton: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    n_ctx_max = getattr(config, "max_position_embeddings", None) or request.n_ctx
    if request.n_ctx > n_ctx_max:
        raise BadInput(f"the model takes {n_ctx_max} tokens", path=path, field=f"--ctx {request.n_ctx}")
    return skeleton


def _spans(
    request: HealRequest, begin: Header | None, n_layer: int, is_swa: tuple[bool, ...] | None
) -> tuple[Span, ...]:
    if request.spans is not None and begin is None:
        return parse_spans(request.spans, n_layer, request.source, is_swa)
    if request.spans is None and begin is not None:
        return starting_weights.spans_in(begin)
    raise BadSpans("one of --spans and --from is needed")


def _parts(skeleton: PreTrainedModel, roles: Roles, request: HealRequest, path: Path) -> tuple[Part, ...]:
    try:
        return trained_parts(skeleton, roles, train_mlp=request.train_mlp)
    except Unsupported as error:  # which knows the model, but not its path
        raise Unsupported(error.reason, path=path, field=error.field, next_step=error.next_step) from None
