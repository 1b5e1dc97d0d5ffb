"""A Hugging Face folder to heal; the output is a folder of the same form, in which every other byte is the same."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..checkpoint.checks import check_files, own_code
from ..checkpoint.rewrite import Slot, copy_with
from ..errors import Unsupported
from ..formats.gguf_header import Header
from ..formats.texts import Text
from ..system.progress import Step
from ..system.staging import publish_folder, staged
from ..system.streams import sha256
from . import starting_weights
from .dense_model import loaded
from .distill import Distiller
from .parts import Part
from .trained_weights import Stored, TrainedWeights
from .training_text import TrainingWindows, training_windows

RECORD = "shareatt_heal.json"  # the file by which a folder is known as the output of healing
PIECE = 1 << 16  # characters for the tokenizer at a time: some tokenizers take time with the square of the length
ATTENTION_KINDS = {"full_attention": False, "sliding_attention": True}


@dataclass(frozen=True)
class CheckpointModel:
    """`slots` tells where in the checkpoint each trained parameter is, `begin` is the SA GGUF of --from."""

    path: Path
    config: Any
    slots: Mapping[str, Slot]
    begin: Header | None

    def identity(self) -> dict[str, str]:
        return {name: sha256(self.path / name) for name in sorted({slot.file for slot in self.slots.values()})}

    def windows(self, texts: Sequence[Text], n_ctx: int, progress: Step) -> TrainingWindows:
        tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
        bos = tokenizer.bos_token_id

        def encode(text: str) -> list[int]:
            tokens: list[int] = []
            for start in range(0, len(text), PIECE):
                tokens += tokenizer(text[start : start + PIECE], add_special_tokens=False).input_ids
            return tokens

        begins = bos is not None and tokenizer("a").input_ids[0] == bos
        return training_windows(encode, bos if begins else None, texts, n_ctx)

    def load(self, dtype: torch.dtype) -> PreTrainedModel:
        return loaded(AutoModelForCausalLM, self.path, self.path, config=self.config, dtype=dtype, use_safetensors=True)

    def check_origin(self, model: PreTrainedModel) -> None:
        if self.begin is not None:
            starting_weights.check_origin(self.begin, model)

    def stored(self, distiller: Distiller, train: Tensor) -> Stored:
        return self._rounded

    def _rounded(self, part: Part, values: Tensor) -> Tensor:
        return values.to(self.slots[part.name].dtype)

    def write(self, weights: TrainedWeights, record: Mapping[str, Any], out: Path, force: bool) -> None:
        with staged(out) as work:
            folder = work / out.name
            folder.mkdir()
            copy_with(self.path, folder, self.slots, weights.current())
            (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            publish_folder(folder, out, self.path, force, RECORD)

    def measured(self, out: Path, windows: Tensor) -> None:
        return None  # the runtime needs a GGUF, which the user makes with an export


def check_folder(folder: Path) -> None:
    """Raise BadInput if the folder is not complete and sound, Unsupported if it has code of its own."""
    if code := own_code(folder):
        raise Unsupported(f"brings code of its own ({code}), which heal does not run", path=folder)
    check_files(folder)


def read_config(folder: Path) -> Any:
    """Return transformers' config of the folder. Raises Unsupported unless it is a decoder in floating point."""
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


def is_swa(folder: Path, config: Any) -> tuple[bool, ...] | None:
    """Return for each layer whether it attends to a sliding window; None if the config does not tell."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return None
    if unknown := set(kinds) - ATTENTION_KINDS.keys():
        field = f"config.json: layer_types: '{min(unknown)}'"
        raise Unsupported(f"heal knows {', '.join(ATTENTION_KINDS)}", path=folder, field=field)
    return tuple(ATTENTION_KINDS[kind] for kind in kinds)[: config.num_hidden_layers]
