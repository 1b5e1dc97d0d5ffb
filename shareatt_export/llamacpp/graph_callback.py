"""Copy tensors of a graph while llama.cpp computes it, through its eval callback.

graph_callback = GraphCallback(lib, bin, ["kq_soft_max", "Vcur"], take)     # calls take("Vcur", 3, array) for layer 3
with Context(model, cb_eval=graph_callback.callback, ...) as context, graph_callback:
    context.decode(...)
"""

import ctypes
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..system.operating_system import shared_library

Array = npt.NDArray[np.floating[Any]]
TakeTensor = Callable[[str, int, Array], object]
FLOATS = {0: np.float32, 1: np.float16}  # ggml_type
END = object()  # `take` returns this to stop the computation of the graph


class Tensor(ctypes.Structure):
    """The fields of ggml_tensor up to its name, as in ggml.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


@cache
def ggml_base(bin: Path) -> ctypes.CDLL:
    """Return the library ggml-base of the folder `bin`, with the types of the functions that this package calls."""
    base = ctypes.CDLL(str(bin / shared_library("ggml-base")))
    base.ggml_nbytes.argtypes, base.ggml_nbytes.restype = [ctypes.c_void_p], ctypes.c_size_t
    for move in (base.ggml_backend_tensor_get, base.ggml_backend_tensor_set):
        move.argtypes, move.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t], None
    base.ggml_quantize_chunk.argtypes = [
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
        *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
    ]
    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    base.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    base.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    return base


class GraphCallback:
    """Give `take` the name, the layer and the values of each tensor called NAME-LAYER or NAME_pos-LAYER.

    `names` are the names to look for. The arrays are f32 or f16 as in the graph, with the dimensions in numpy's order
    (the reverse of ggml's). A name may come more than once for a layer; the next node reads the last of them. When
    `take` returns END, llama.cpp computes no further node, and the logits are not valid. An array that it returns
    replaces the values of the node. If `take` raises an error, the end of the `with` block raises it again.
    """

    def __init__(self, lib: ModuleType, bin: Path, names: Sequence[str], take: TakeTensor) -> None:
        self._ggml, self._take = ggml_base(bin), take
        self._failure: BaseException | None = None
        self._wanted_name = re.compile(self._pattern("|".join(map(re.escape, names))))
        self.callback = lib.ggml_backend_sched_eval_callback(self._on_node)

    @staticmethod
    def _pattern(names: str) -> str:
        return rf"(?P<name>{names})(_pos)?-(?P<layer>\d+)"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Raise the error that `take` raised, because an exception cannot pass through llama.cpp."""
        if self._failure is not None:
            raise self._failure

    def _name_and_values(self, node: Tensor) -> tuple[str, Tensor] | None:
        """Return the name to compare with `names`, and the tensor to copy."""
        return node.name.decode(), node

    def _on_node(self, address: int, ask: bool, data: object) -> bool:
        """Answer llama.cpp: with `ask`, whether to observe the node; after its computation, whether to go on."""
        candidate = self._name_and_values(Tensor.from_address(address))
        found = self._wanted_name.fullmatch(candidate[0]) if candidate else None
        if candidate is None or found is None:
            return not ask
        if ask:
            return True
        try:
            taken = self._take(found["name"], int(found["layer"]), self._copy(candidate[1]))
            if isinstance(taken, np.ndarray):
                self._replace(address, taken)
            return taken is not END
        except BaseException as error:  # also what a signal raises
            self._failure = error
            return False

    def _copy(self, tensor: Tensor) -> Array:
        address = ctypes.addressof(tensor)
        buffer = np.empty(self._ggml.ggml_nbytes(address), np.uint8)
        self._ggml.ggml_backend_tensor_get(address, buffer.ctypes.data, 0, buffer.size)
        shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
        return np.lib.stride_tricks.as_strided(buffer.view(FLOATS[tensor.type]), shape, strides)

    def _replace(self, address: int, values: Array) -> None:
        values = np.ascontiguousarray(values, FLOATS[Tensor.from_address(address).type])
        if values.nbytes != self._ggml.ggml_nbytes(address):
            raise ValueError(f"{values.shape} is not the shape of what the node gives")
        self._ggml.ggml_backend_tensor_set(address, values.ctypes.data, 0, values.nbytes)


class InputCallback(GraphCallback):
    """A GraphCallback for the inputs of matrix products with the weights blk.LAYER.NAME.weight.

    `take` gets NAME, LAYER and the input, which may have any name in the graph. An array that it returns replaces the
    product, the node itself.
    """

    @staticmethod
    def _pattern(names: str) -> str:
        return rf"blk\.(?P<layer>\d+)\.(?P<name>{names})\.weight"

    def _name_and_values(self, node: Tensor) -> tuple[str, Tensor] | None:
        weights, values = node.src[0], node.src[1]
        if not weights or not values:
            return None
        return Tensor.from_address(weights).name.decode(), Tensor.from_address(values)
