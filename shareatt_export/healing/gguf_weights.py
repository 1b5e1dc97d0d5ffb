"""Read the weights of a GGUF into transformers' modules, and find the place of a trained part in it.

llama.cpp's converter stores most weights as transformers does. LAYOUTS has the architectures that are known here, with
what it changes: in Llama it sorts the rows of Q and K otherwise, in Gemma it adds 1 to the weights of norms.
"""

from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from ..errors import Unsupported
from ..formats.gguf_header import Header, TensorInfo
from ..formats.tensor_copies import read_f32
from ..model.facts import Facts

FOLDER = "heal its Hugging Face folder"  # the next step where a GGUF cannot be healed
ROPE_FACTORS = "rope_freqs.weight"  # divide the frequencies of RoPE, as Llama 3 does for long contexts


@dataclass(frozen=True)
class Layout:
    """`sorted_qk`: the rows of Q and K are sorted for llama.cpp's RoPE. `norm`: what is added to weights of norms."""

    sorted_qk: bool = False
    norm: float = 0.0


LAYOUTS = {
    "gemma2": Layout(norm=1.0),
    "gemma3": Layout(norm=1.0),
    "llama": Layout(sorted_qk=True),
    "nemotron": Layout(norm=1.0),
    "phi3": Layout(),
    "qwen2": Layout(),
    "qwen3": Layout(),
    "stablelm": Layout(),
    "starcoder2": Layout(),
}

N_LAYER_27B = {"gemma2": 46, "gemma3": 62}  # llama.cpp scales the scores of these models otherwise


def layout_of(header: Header) -> Layout:
    """Return the layout of a file's weights. Raises Unsupported for an architecture that is not in the table."""
    arch = header.text("general.architecture")
    if arch not in LAYOUTS:
        reason = f"heal does not read the weights of '{arch}' from a GGUF (it reads {', '.join(LAYOUTS)})"
        raise Unsupported(reason, path=header.path, field="general.architecture", next_step=FOLDER)
    return LAYOUTS[arch]


def read_config(header: Header, facts: Facts) -> Any:
    """Return transformers' config of the model. Raises Unsupported if transformers cannot read it from the file."""
    layout_of(header)
    try:
        config = AutoConfig.from_pretrained(header.path.parent, gguf_file=header.path.name, local_files_only=True)
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise Unsupported(f"transformers cannot read it: {error}", path=header.path, next_step=FOLDER) from None
    config.tie_word_embeddings = "output.weight" not in header.tensors  # in shards, it may be in another file
    _mend(config, header, facts)
    return config


def _mend(config: Any, header: Header, facts: Facts) -> None:
    """Set what transformers 5 does not read from the file, where it takes the value of a well-known model instead."""
    if getattr(config, "head_dim", None) is not None:
        config.head_dim = facts.head_dim_k
    if hasattr(config, "query_pre_attn_scalar"):  # Gemma
        by_width = facts.n_layer == N_LAYER_27B.get(facts.arch)
        config.query_pre_attn_scalar = facts.n_embd // facts.n_head[0] if by_width else facts.head_dim_k
    rope = getattr(config, "rope_parameters", None)
    if rope and "partial_rotary_factor" in rope:
        n_rotated = header.integer(f"{facts.arch}.rope.dimension_count", facts.head_dim_k)
        rope["partial_rotary_factor"] = n_rotated / facts.head_dim_k


class Places:
    """Where the parameters of a transformers model are in a GGUF."""

    def __init__(self, header: Header, facts: Facts) -> None:
        self._header, self._facts, self._layout = header, facts, layout_of(header)
        arch = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[facts.arch]
        self._names = gguf.get_tensor_name_map(arch, facts.n_layer)

    def info(self, parameter: str) -> TensorInfo:
        """Return the tensor of a parameter. Raises Unsupported if the file has none."""
        name = self._names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if name is None or name not in self._header.tensors:
            reason = f"has no tensor for transformers' parameter '{parameter}'"
            raise Unsupported(reason, path=self._header.path, next_step=FOLDER)
        return self._header.tensors[name]

    def order(self, info: TensorInfo) -> npt.NDArray[np.intp] | None:
        """Return for each row of a tensor the number of its row in transformers; None if it is the same."""
        _, _, layer_and_role = info.name.partition("blk.")
        layer, _, role = layer_and_role.partition(".")
        n_head = {"attn_q": self._facts.n_head, "attn_k": self._facts.n_head_kv}.get(role.split(".")[0])
        if not self._layout.sorted_qk or n_head is None:
            return None
        rows = np.arange(info.shape[-1])
        return rows.reshape(n_head[int(layer)], 2, -1).swapaxes(1, 2).ravel()

    def values(self, info: TensorInfo) -> npt.NDArray[np.float32]:
        """Return the values of a tensor as transformers has them."""
        values = read_f32(info).reshape(info.shape[::-1])
        if (order := self.order(info)) is not None:
            values = values[np.argsort(order)]
        return values - np.float32(self._layout.norm) if info.name.endswith("norm.weight") else values

    def state(self, skeleton: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the values of all parameters. Raises Unsupported if the file has tensors that none of them needs."""
        infos = {name: self.info(name) for name, _ in skeleton.named_parameters()}
        used = {info.name for info in infos.values()} | {ROPE_FACTORS}
        if unused := sorted(self._header.tensors.keys() - used):
            reason, field = "transformers' model has no place for it", f"tensor '{unused[0]}'"
            raise Unsupported(reason, path=self._header.path, field=field, next_step=FOLDER)
        return {name: torch.tensor(self.values(info), dtype=dtype) for name, info in infos.items()}

    def scale_rope(self, model: PreTrainedModel) -> None:
        """Divide the frequencies of RoPE by the factors of the file, if it has any."""
        if (info := self._header.tensors.get(ROPE_FACTORS)) is None:
            return
        factors = torch.from_numpy(read_f32(info)[0])
        for module in model.modules():
            if isinstance(frequencies := getattr(module, "inv_freq", None), Tensor):
                frequencies /= factors.to(frequencies.device)
