"""llama_cpp (the ctypes bindings of llama-cpp-python) on a chosen libllama, plus the functions that the patch adds."""

import ctypes
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import RuntimeProblem


def load(python: Path, bin: Path) -> ModuleType:
    """The module llama_cpp.llama_cpp of the folder `python`, on the libraries of the folder `bin`.

    The library is chosen at import, so a process can load one. Raises RuntimeProblem if it has loaded another.
    """
    loaded = sys.modules.get("llama_cpp")
    if loaded is not None and os.environ.get("LLAMA_CPP_LIB_PATH") != str(bin):
        raise RuntimeProblem(f"{bin}: this process has loaded another llama_cpp already")
    os.environ["LLAMA_CPP_LIB_PATH"] = str(bin)
    if str(python) not in sys.path:
        sys.path.insert(0, str(python))
    return importlib.import_module("llama_cpp.llama_cpp")


class SharedAttention:
    """The patch's own functions, as llama-shared-attn.h declares them; `None` from `of` on an unpatched library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._abi = library.llama_shared_attn_abi
        self._source = library.llama_model_shared_attn_source
        self._set = library.llama_model_shared_attn_set
        self._abi.restype = ctypes.c_int32
        self._source.argtypes, self._source.restype = [ctypes.c_void_p, ctypes.c_int32], ctypes.c_int32
        self._set.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int32), ctypes.c_size_t]
        self._set.restype = ctypes.c_bool

    @classmethod
    def of(cls, llama_cpp: ModuleType) -> "SharedAttention | None":
        return cls(llama_cpp._lib) if hasattr(llama_cpp._lib, "llama_shared_attn_abi") else None

    def abi(self) -> int:
        return int(self._abi())

    def source(self, model: Any, layer: int) -> int:
        """The layer whose attention weights `layer` uses; -1 if there is no such layer."""
        return int(self._source(model, layer))

    def set(self, model: Any, source_layers: tuple[int, ...]) -> bool:
        """Set the source map before the model's first context; False (with a line in the log) if it is not valid."""
        return bool(self._set(model, (ctypes.c_int32 * len(source_layers))(*source_layers), len(source_layers)))
