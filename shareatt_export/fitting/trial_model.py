"""A dense model in memory with another source map and other weights: what a follower will do, before it is written."""

import ctypes
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ..errors import Unsupported
from ..formats.gguf_header import Header
from ..formats.tensor_copies import FloatRows, RawRows, TensorCopy, raw_rows
from ..llamacpp.bindings import load
from ..llamacpp.engine import Context, Model, Token
from ..llamacpp.graph_callback import GraphCallback, Tensor, ggml_base
from ..llamacpp.runtime import RuntimeStatus


class TrialModel:
    """Only tensors of the layers' attention can be changed."""

    def __init__(self, built: RuntimeStatus, header: Header) -> None:
        self.lib, self.bin, self.header = load(built.python, built.bin), built.bin, header
        self._base = ggml_base(built.bin)
        # weights that can be written: in plain memory of the process, in the layout of the file
        self.model = Model(
            self.lib, header.path, load_mode=self.lib.LLAMA_LOAD_MODE_NONE, use_extra_bufts=False, n_gpu_layers=0
        )
        self.feeds: dict[str, str] = {}  # weights by name -> what the graph multiplies them with
        self._tensors = self._find()
        self._changed: dict[TensorCopy, RawRows] = {}

    def _find(self) -> dict[str, int]:
        """Addresses of the weights, which the nodes of a graph point to."""
        found, feeds = dict[str, int](), self.feeds

        class Sources(GraphCallback):
            def _look(self, address: int, ask: bool, data: object) -> bool:
                sources = [source for source in Tensor.from_address(address).src if source]
                names = [Tensor.from_address(source).name.decode() for source in sources]
                found.update(zip(names, sources, strict=True))
                if len(names) > 1:
                    feeds[names[0]] = names[1]
                return not ask

        taps = Sources(self.lib, self.bin, [], lambda *_: None)
        with Context(self.model, n_ctx=64, cb_eval=taps.callback) as context, taps:
            context.decode([Token(0, 0)])
        return found

    def set(self, source_layers: tuple[int, ...], changes: Mapping[TensorCopy, RawRows]) -> None:
        """With other contexts closed. Tensors that are not among the changes are as in the file again."""
        self.model.share(source_layers)
        for copy in self._changed.keys() - changes.keys():
            self._put(copy, raw_rows(copy))
        for copy, raw in changes.items():
            if self._changed.get(copy) is not raw:
                self._put(copy, raw)
        self._changed = dict(changes)

    def _put(self, copy: TensorCopy, raw: RawRows) -> None:
        if copy.origin.name not in self._tensors:
            raise Unsupported(f"{self.header.path}: tensor '{copy.origin.name}': this model's graph does not use it")
        raw = np.ascontiguousarray(raw)
        self._base.ggml_backend_tensor_set(self._tensors[copy.origin.name], raw.ctypes.data, copy.skipped, raw.nbytes)

    def encoded(self, values: FloatRows, type: GGMLQuantizationType, importance: FloatRows | None = None) -> RawRows:
        """`importance` [length of a row]: of each column, as llama-imatrix measures it; types of two bits and less need
        one, and without it take all columns alike."""
        values = np.ascontiguousarray(values, np.float32)
        rows, length = values.shape
        block, block_bytes = GGML_QUANT_SIZES[type]
        if length % block:
            raise Unsupported(f"{self.header.path}: rows of {length} numbers are not whole blocks of {type.name}")
        raw = np.empty((rows, length // block * block_bytes), np.uint8)
        if importance is None and self._base.ggml_quantize_requires_imatrix(int(type)):
            importance = np.ones(length, np.float32)
        if importance is not None:
            importance = np.ascontiguousarray(importance, np.float32)
        weights = None if importance is None else importance.ctypes.data_as(ctypes.c_void_p)
        self._base.ggml_quantize_chunk(int(type), values.ctypes.data, raw.ctypes.data, 0, rows, length, weights)
        return raw

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.model.__exit__(kind, error, at)
