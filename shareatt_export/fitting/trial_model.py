"""A dense model in memory with another source map and other weights: it computes what an export would compute."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from gguf import GGMLQuantizationType

from ..errors import Unsupported
from ..formats.gguf_header import Header
from ..formats.tensor_copies import FloatRows, RawRows, TensorCopy, raw_rows, restored, whole_copy
from ..llamacpp.bindings import load
from ..llamacpp.encode import encoded_rows
from ..llamacpp.engine import Context, Model, Token
from ..llamacpp.graph_callback import Tensor, ggml_base
from ..llamacpp.runtime import RuntimeStatus
from ..model.attention_map import AttentionMap
from ..model.facts import read_facts


@dataclass(frozen=True)
class _Operands:
    """What the nodes of a graph read.

    `addresses`: of ggml_tensor structures, by name. `inputs`: the second operand of a node, by the name of the first.
    """

    addresses: Mapping[str, int]
    inputs: Mapping[str, str]


def _find_operands(model: Model) -> _Operands:
    addresses: dict[str, int] = {}
    inputs: dict[str, str] = {}

    def on_node(address: int, ask: bool, data: object) -> bool:
        operands = [operand for operand in Tensor.from_address(address).src if operand]
        operand_names = [Tensor.from_address(operand).name.decode() for operand in operands]
        addresses.update(zip(operand_names, operands, strict=True))
        if len(operand_names) > 1:
            inputs[operand_names[0]] = operand_names[1]
        return not ask  # no node's values are needed, and the computation goes on

    callback = model.lib.ggml_backend_sched_eval_callback(on_node)
    with Context(model, n_ctx=64, cb_eval=callback) as context:
        context.decode([Token(0, 0)])
    return _Operands(addresses, inputs)


class TrialModel:
    """A model whose attention map, and the tensors that its graph reads, can be changed in memory.

    `inputs`: by the name of a weight, the name of the tensor that the graph multiplies it with.
    """

    def __init__(self, built: RuntimeStatus, header: Header) -> None:
        self.lib, self.bin, self.header = load(built.python, built.bin), built.bin, header
        self.facts = read_facts(header)
        self._base = ggml_base(built.bin)
        # weights that can be written: in plain memory of the process, in the layout of the file
        self.model = Model(
            self.lib, header.path, load_mode=self.lib.LLAMA_LOAD_MODE_NONE, use_extra_bufts=False, n_gpu_layers=0
        )
        operands = _find_operands(self.model)
        self.inputs, self._addresses = operands.inputs, operands.addresses
        self._changes: dict[TensorCopy, RawRows] = {}

    def change(self, attention: AttentionMap, changes: Mapping[TensorCopy, RawRows]) -> None:
        """Give the model an attention map and the changed tensors; all other tensors are as in the file again.

        Tensors keep the types of the file: what an export encodes in another type is rounded once more here.
        Raises RuntimeProblem if a context of the model is open, Unsupported for a tensor that the graph does not read.
        """
        self.model.share_heads(attention.flat())
        for copy in self._changes.keys() - changes.keys():
            before = whole_copy(copy.origin) if copy.recoded else copy
            self._write(before, raw_rows(before))
        for copy, raw in changes.items():
            if self._changes.get(copy) is not raw:
                self._write(copy, raw)
        self._changes = dict(changes)

    def write(self, copy: TensorCopy, raw: RawRows) -> None:
        """Give the model one more changed tensor; a context may be open. Raises Unsupported as change() does."""
        self._write(copy, raw)
        self._changes[copy] = raw

    def _write(self, copy: TensorCopy, raw: RawRows) -> None:
        if (name := copy.origin.name) not in self._addresses:
            raise Unsupported("this model's graph does not use it", path=self.header.path, field=f"tensor '{name}'")
        if copy.recoded:
            whole = whole_copy(copy.origin)
            copy, raw = whole, self.encoded(restored(copy, raw), whole.type)
        raw, place = np.ascontiguousarray(raw), 0
        for first, n_bytes in copy.ranges():
            self._base.ggml_backend_tensor_set(self._addresses[name], raw.ctypes.data + place, first, n_bytes)
            place += n_bytes

    def encoded(self, values: FloatRows, type: GGMLQuantizationType, importance: FloatRows | None = None) -> RawRows:
        """Return the rows in the given type, see encoded_rows(). Raises Unsupported where it does."""
        return encoded_rows(self.bin, values, type, importance, self.header.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.model.__exit__(kind, error, at)
