"""Tensors of a graph, copied while llama.cpp computes it (its eval callback).

taps = Taps(lib, ["kq_soft_max", "Vcur"], take)     # take("Vcur", 3, array) for layer 3
with Context(model, cb_eval=taps.callback, ...) as context, taps:
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

Array = npt.NDArray[np.floating[Any]]
Take = Callable[[str, int, Array], object]
FLOATS = {0: np.float32, 1: np.float16}  # ggml_type


class Tensor(ctypes.Structure):
    """The first fields of ggml_tensor."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
    )


@cache
def ggml_base(bin: Path) -> ctypes.CDLL:
    base = ctypes.CDLL(str(bin / "libggml-base.so"))
    base.ggml_get_name.argtypes, base.ggml_get_name.restype = [ctypes.c_void_p], ctypes.c_char_p
    base.ggml_nbytes.argtypes, base.ggml_nbytes.restype = [ctypes.c_void_p], ctypes.c_size_t
    base.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    base.ggml_backend_tensor_get.restype = None
    return base


class Taps:
    """Gives `take` the name, the layer and the values of tensors called NAME-LAYER or NAME_pos-LAYER.

    Values come as they are in the graph, in numpy's order of dimensions (the reverse of ggml's), f32 or f16. A name may
    come more than once for a layer: the last one is what the next node reads.
    """

    def __init__(self, lib: ModuleType, bin: Path, names: Sequence[str], take: Take) -> None:
        self._base, self._take = ggml_base(bin), take
        self._failure: Exception | None = None
        self._name = re.compile(rf"({'|'.join(map(re.escape, names))})(?:_pos)?-(\d+)")
        self.callback = lib.ggml_backend_sched_eval_callback(self._look)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Raises what `take` raised: an exception cannot pass through llama.cpp."""
        if self._failure is not None:
            raise self._failure

    def _look(self, tensor: int, ask: bool, data: object) -> bool:
        name = self._name.fullmatch(self._base.ggml_get_name(tensor).decode())
        if name and not ask:
            try:
                self._take(name[1], int(name[2]), self._copy(tensor))
            except Exception as error:
                self._failure = error
                return False  # ends the computation
        return bool(name) or not ask

    def _copy(self, tensor: int) -> Array:
        fields = Tensor.from_address(tensor)
        buffer = np.empty(self._base.ggml_nbytes(tensor), np.uint8)
        self._base.ggml_backend_tensor_get(tensor, buffer.ctypes.data, 0, buffer.size)
        shape, strides = tuple(fields.ne)[::-1], tuple(fields.nb)[::-1]
        return np.lib.stride_tricks.as_strided(buffer.view(FLOATS[fields.type]), shape, strides)
