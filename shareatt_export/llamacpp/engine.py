"""A model and a context of the runtime through ctypes: tokens in, logits out.

with Model(lib, path) as model, Context(model, n_ctx=256) as context:
    logits = context.decode([Token(id=5, position=0)])   # float32 [1, n_vocab]
"""

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..errors import BadInput, RuntimeProblem
from .bindings import SharedAttention

Logits = npt.NDArray[np.float32]


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Of each row, in double precision."""
    shifted: npt.NDArray[np.float64] = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


@dataclass(frozen=True)
class Token:
    id: int
    position: int
    sequence: int = 0


class Log:
    """What llama.cpp says while the block runs; the library has one log for all threads."""

    def __init__(self, lib: ModuleType) -> None:
        self.lib, self.lines = lib, ""
        self._callback = lib.llama_log_callback(self._take)

    def _take(self, level: int, text: bytes, data: object) -> None:
        self.lines += text.decode("utf-8", "replace")

    def __enter__(self) -> Self:
        self.lib.llama_log_set(self._callback, None)
        return self

    def __exit__(self, *_: object) -> None:
        self.lib.llama_log_set(_silence(self.lib), None)

    def error(self) -> str:
        """The line that says most: the loader's reason, else the last line."""
        lines = [line.strip() for line in self.lines.splitlines() if line.strip()]
        reasons = [line for line in lines if "error loading model" in line or "llama_model_shared_attn_set" in line]
        return (reasons or lines or ["no reason given"])[-1]


_silent: dict[int, Any] = {}  # by id of the library


def _silence(lib: ModuleType) -> Any:
    """A callback that says nothing; it must outlive its registration."""
    return _silent.setdefault(id(lib), lib.llama_log_callback(lambda *_: None))


def _set_fields(structure: ctypes.Structure, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if not hasattr(structure, name):
            raise TypeError(f"{type(structure).__name__} has no field '{name}'")
        setattr(structure, name, value)


class Model:
    """`params` are fields of llama_model_params. Raises BadInput with llama.cpp's own reason if it does not load."""

    def __init__(
        self, lib: ModuleType, path: Path, source_layers: tuple[int, ...] | None = None, **params: Any
    ) -> None:
        self.lib, self.path = lib, path
        lib.llama_backend_init()
        fields = lib.llama_model_default_params()
        _set_fields(fields, params)
        with Log(lib) as log:
            self.handle = lib.llama_model_load_from_file(str(path).encode(), fields)
        self.log = log.lines
        if not self.handle:
            raise BadInput(f"{path}: {log.error()}")
        if source_layers is not None:
            self.share(source_layers)
        self._vocab = lib.llama_model_get_vocab(self.handle)
        self.n_vocab = int(lib.llama_vocab_n_tokens(self._vocab))
        self.n_layer = int(lib.llama_model_n_layer(self.handle))

    def share(self, source_layers: tuple[int, ...]) -> None:
        """Try out a source map, before the first context. Raises RuntimeProblem with the runtime's reason."""
        shared = SharedAttention.of(self.lib)
        if shared is None:
            raise RuntimeProblem("this libllama has no Shared Attention")
        with Log(self.lib) as log:
            if not shared.set(self.handle, source_layers):
                raise RuntimeProblem(log.error())

    @property
    def bos(self) -> int | None:
        """The token that a text begins with, if the model wants one."""
        return int(self.lib.llama_vocab_bos(self._vocab)) if self.lib.llama_vocab_get_add_bos(self._vocab) else None

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Without BOS; with `special`, names of control tokens stand for those. Raises BadInput without a tokenizer."""
        if not self.lib.llama_vocab_type(self._vocab):
            raise BadInput(f"{self.path}: tokenizer.ggml.model: has no tokenizer to read a text with")
        data = text.encode()
        tokens = (ctypes.c_int32 * (len(data) + 8))()
        n = self.lib.llama_tokenize(self._vocab, data, len(data), tokens, len(tokens), False, special)
        return list(tokens[:n])

    def text(self, tokens: Iterable[int]) -> bytes:
        """What the tokens stand for; control tokens for nothing."""
        buffer = ctypes.create_string_buffer(4096)
        piece = self.lib.llama_token_to_piece
        sizes = (piece(self._vocab, token, buffer, len(buffer), 0, False) for token in tokens)
        return b"".join(buffer.raw[: max(0, size)] for size in sizes)

    def ends(self, token: int) -> bool:
        """Whether generation ends with this token."""
        return bool(self.lib.llama_vocab_is_eog(self._vocab, token))

    def source_layers(self) -> tuple[int, ...]:
        shared = SharedAttention.of(self.lib)
        layers = range(self.n_layer)
        return tuple(layers) if shared is None else tuple(shared.source(self.handle, layer) for layer in layers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.lib.llama_model_free(self.handle)


class Context:
    """`params` are fields of llama_context_params; flash_attn is None for llama.cpp's own choice."""

    def __init__(self, model: Model, flash_attn: bool | None = None, **params: Any) -> None:
        self.lib, self.model = model.lib, model
        fields = self.lib.llama_context_default_params()
        fields.flash_attn_type = -1 if flash_attn is None else int(flash_attn)
        fields.n_threads = fields.n_threads_batch = 2
        _set_fields(fields, params)
        with Log(self.lib) as log:
            self.handle = self.lib.llama_init_from_model(model.handle, fields)
        if not self.handle:
            raise RuntimeProblem(f"no context: {log.error()}")
        self.log = log.lines

    def decode(self, tokens: Sequence[Token], last_only: bool = False) -> Logits:
        """The logits after each token, [len(tokens), n_vocab], or after the last one, [1, n_vocab].

        Raises RuntimeProblem if llama.cpp cannot decode.
        """
        self._submit(tokens, last_only)
        return self._rows(self.lib.llama_get_logits(self.handle), 1 if last_only else len(tokens), self.model.n_vocab)

    def embed(self, tokens: Sequence[Token]) -> Logits:
        """What a model without logits says of each token, [len(tokens), n_embd]; the context needs embeddings=True.

        Raises RuntimeProblem if llama.cpp cannot compute it.
        """
        self._submit(tokens, False)
        n_embd = int(self.lib.llama_model_n_embd(self.model.handle))
        return self._rows(self.lib.llama_get_embeddings(self.handle), len(tokens), n_embd)

    def _submit(self, tokens: Sequence[Token], last_only: bool) -> None:
        batch = self.lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token.id, token.position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, token.sequence
            batch.logits[i] = not last_only or i == len(tokens) - 1
        status = self.lib.llama_decode(self.handle, batch)
        self.lib.llama_batch_free(batch)
        if status:
            raise RuntimeProblem(f"llama_decode: status {status}")

    @staticmethod
    def _rows(data: Any, n_rows: int, n_columns: int) -> Logits:
        if not data:
            raise RuntimeProblem("llama_decode: this model has no such output")
        rows = ctypes.cast(data, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(rows, (n_rows, n_columns)).copy()

    @property
    def memory(self) -> Any:
        return self.lib.llama_get_memory(self.handle)

    def copy_sequence(self, source: int, target: int) -> None:
        """Let `target` have all that `source` has; a unified cache keeps it once."""
        self.lib.llama_memory_seq_cp(self.memory, source, target, -1, -1)

    def clear(self) -> None:
        self.lib.llama_memory_clear(self.memory, True)

    def sequence_state(self, sequence: int = 0) -> bytes:
        buffer = (ctypes.c_uint8 * self.lib.llama_state_seq_get_size(self.handle, sequence))()
        return bytes(buffer[: self.lib.llama_state_seq_get_data(self.handle, buffer, len(buffer), sequence)])

    def restore_sequence(self, state: bytes, sequence: int) -> bool:
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        with Log(self.lib):
            return int(self.lib.llama_state_seq_set_data(self.handle, buffer, len(state), sequence)) == len(state)

    def state(self) -> bytes:
        buffer = (ctypes.c_uint8 * self.lib.llama_state_get_size(self.handle))()
        return bytes(buffer[: self.lib.llama_state_get_data(self.handle, buffer, len(buffer))])

    def restore(self, state: bytes) -> bool:
        """False if the state does not fit this context; llama.cpp then says why in its log."""
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        with Log(self.lib):
            return int(self.lib.llama_state_set_data(self.handle, buffer, len(state))) == len(state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.lib.llama_free(self.handle)
