"""Load llama_cpp (the ctypes bindings of llama-cpp-python) on a chosen libllama, and call what the patch adds to it."""

import ctypes
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import RuntimeProblem


def load(python: Path, bin: Path) -> ModuleType:
    """Return the module llama_cpp.llama_cpp of the folder `python`, on the libraries of the folder `bin`.

    The bindings choose their library at import, so a process can load only one. Raises RuntimeProblem if this process
    has loaded another.
    """
    loaded = sys.modules.get("llama_cpp")
    if loaded is not None and os.environ.get("LLAMA_CPP_LIB_PATH") != str(bin):
        raise RuntimeProblem("this process has loaded another llama_cpp already", path=bin)
    os.environ |= {"LLAMA_CPP_LIB_PATH": str(bin)} | waiting()
    if str(python) not in sys.path:
        sys.path.insert(0, str(python))
    llama_cpp = importlib.import_module("llama_cpp.llama_cpp")
    _load_backends(llama_cpp, bin)
    return llama_cpp


def waiting() -> dict[str, str]:
    """Return the environment that says how threads wait at OpenMP's barriers; nothing where the user's says it.

    By default they spin so long that other programs make llama.cpp several times slower, and its --poll does not change
    it. To sleep at once (OMP_WAIT_POLICY=passive) would halve the speed of a machine with nothing else to do
    (docs/runtime.md).
    """
    set_by_user = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
    return {} if set_by_user else {"GOMP_SPINCOUNT": "1000"}


def _load_backends(llama_cpp: ModuleType, bin: Path) -> None:
    """Load the backends of ggml if they are modules of their own, as in an installed runtime.

    By itself ggml looks for modules beside the running program, which is Python here. ggml's functions are found
    through libllama.
    """
    if llama_cpp._lib.ggml_backend_reg_count():
        return
    set_verbose = importlib.import_module("llama_cpp._logger").set_verbose
    set_verbose(False)  # else the library says on stderr what it has loaded
    llama_cpp._lib.ggml_backend_load_all_from_path(str(bin).encode())
    set_verbose(True)


class SharedAttention:
    """The functions that the patch adds to libllama, as llama-shared-attn.h declares them."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._abi = library.llama_shared_attn_abi
        self._source = library.llama_model_shared_attn_source
        self._source_head = library.llama_model_shared_attn_source_head
        self._set = library.llama_model_shared_attn_set
        self._set_heads = library.llama_model_shared_attn_set_heads
        self._abi.restype = ctypes.c_int32
        self._source.argtypes, self._source.restype = [ctypes.c_void_p, ctypes.c_int32], ctypes.c_int32
        self._source_head.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32]
        self._source_head.restype = ctypes.c_int32
        for set_map in (self._set, self._set_heads):
            set_map.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int32), ctypes.c_size_t]
            set_map.restype = ctypes.c_bool

    @classmethod
    def from_bindings(cls, llama_cpp: ModuleType) -> "SharedAttention | None":
        """Return the functions of the library that the bindings have loaded; None if it is not patched."""
        return cls(llama_cpp._lib) if hasattr(llama_cpp._lib, "llama_shared_attn_abi") else None

    def abi(self) -> int:
        """Return the version of the patch's C interface; the pin names the one that this package needs."""
        return int(self._abi())

    def source_layer(self, model: Any, layer: int) -> int:
        """Return the layer whose attention weights all heads of `layer` use; -1 if they do not all do the same."""
        return int(self._source(model, layer))

    def source_head(self, model: Any, layer: int, head: int) -> int:
        """Return the head whose attention weights a query head uses, as AttentionMap numbers them.

        -1 if the head is dropped, or if there is none.
        """
        return int(self._source_head(model, layer, head))

    def set_source_layers(self, model: Any, source_layers: tuple[int, ...]) -> bool:
        """Set the source map of a model that has no context.

        Returns False, and llama.cpp writes the reason to its log, if it has one or the map is not valid.
        """
        return bool(self._set(model, _int32_array(source_layers), len(source_layers)))

    def set_source_heads(self, model: Any, source_heads: tuple[int, ...]) -> bool:
        """Set the map of a dense model that has no context, from AttentionMap.flat(); else as set_source_layers()."""
        return bool(self._set_heads(model, _int32_array(source_heads), len(source_heads)))


def _int32_array(values: tuple[int, ...]) -> ctypes.Array[ctypes.c_int32]:
    return (ctypes.c_int32 * len(values))(*values)
