"""Load a model into a context of the runtime, decode tokens and get their logits, through ctypes.

with Model(lib, path) as model, Context(model, n_ctx=256) as context:
    logits = context.decode([Token(id=5, position=0)])   # float32 [1, n_vocab]
"""

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from ..errors import BadInput, RuntimeProblem
from .bindings import SharedAttention

Logits = npt.NDArray[np.float32]


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Return the logarithm of the softmax of each row, [..., n_vocab], in double precision."""
    shifted: npt.NDArray[np.float64] = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def log_sum_exp(logits: Logits) -> npt.NDArray[np.float64]:
    """Return the logarithm of the sum of the exponentials of each row; a logit minus it is a log-probability."""
    top = logits.max(-1, keepdims=True)
    sums: npt.NDArray[np.float64] = np.log(np.exp(logits - top).sum(-1, dtype=np.float64)) + top[..., 0]
    return sums


@dataclass(frozen=True)
class Token:
    """A token of a batch: its number in the vocabulary, its position and the number of its sequence.

    `also`: further sequences that begin with the same tokens up to this one, so that it is computed once for all.
    """

    id: int
    position: int
    sequence: int = 0
    also: tuple[int, ...] = ()


class Log:
    """Collect what llama.cpp writes to its log while the block runs; the library has one log for all threads."""

    def __init__(self, lib: ModuleType) -> None:
        self.lib, self.lines = lib, ""
        self._callback = lib.llama_log_callback(self._take)

    def _take(self, level: int, text: bytes, data: object) -> None:
        self.lines += text.decode("utf-8", "replace")

    def __enter__(self) -> Self:
        self.lib.llama_log_set(self._callback, None)
        return self

    def __exit__(self, *_: object) -> None:
        self.lib.llama_log_set(_empty_callback(self.lib), None)

    def error(self) -> str:
        """Return the loader's reason if the log has one, else the last line of the log."""
        lines = [line.strip() for line in self.lines.splitlines() if line.strip()]
        reasons = [line for line in lines if "error loading model" in line or "llama_model_shared_attn_set" in line]
        return (reasons or lines or ["no reason given"])[-1]


_empty_callbacks: dict[int, Any] = {}  # by the id of the library


def _empty_callback(lib: ModuleType) -> Any:
    """Return a callback that drops the log. It is kept here, because the library goes on calling it."""
    return _empty_callbacks.setdefault(id(lib), lib.llama_log_callback(lambda *_: None))


def _set_fields(structure: ctypes.Structure, values: dict[str, Any]) -> None:
    """Set fields of a structure. Raises TypeError for a name that it does not have, which ctypes would accept."""
    for name, value in values.items():
        if not hasattr(structure, name):
            raise TypeError(f"{type(structure).__name__} has no field '{name}'")
        setattr(structure, name, value)


class Model:
    """A loaded model. `log` is what llama.cpp wrote while it was loading.

    `source_layers` is a source map to set. `params` are fields of llama_model_params. Raises
    BadInput with llama.cpp's own reason if the file does not load, RuntimeProblem as share() does.
    """

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
            raise BadInput(log.error(), path=path)
        if source_layers is not None:
            self.share(source_layers)
        self._vocab = lib.llama_model_get_vocab(self.handle)
        self.n_vocab = int(lib.llama_vocab_n_tokens(self._vocab))
        self.n_layer = int(lib.llama_model_n_layer(self.handle))

    def share(self, source_layers: tuple[int, ...]) -> None:
        """Set a source map. Raises RuntimeProblem with the runtime's reason, also while the model has a context."""
        with Log(self.lib) as log:
            if not self._shared().set_source_layers(self.handle, source_layers):
                raise RuntimeProblem(log.error())

    def share_heads(self, source_heads: tuple[int, ...]) -> None:
        """Set a map of heads, AttentionMap.flat(), on a model that has all of its heads; else as share()."""
        with Log(self.lib) as log:
            if not self._shared().set_source_heads(self.handle, source_heads):
                raise RuntimeProblem(log.error())

    def _shared(self) -> SharedAttention:
        if (shared := SharedAttention.from_bindings(self.lib)) is None:
            raise RuntimeProblem("this libllama has no Shared Attention")
        return shared

    @property
    def bos(self) -> int | None:
        """The token that a text begins with; None if the model wants none."""
        return int(self.lib.llama_vocab_bos(self._vocab)) if self.lib.llama_vocab_get_add_bos(self._vocab) else None

    def special_token(self, name: Literal["bos", "eos"]) -> int | None:
        """Return the token of that name, whether or not texts begin or end with it; None if the model has none."""
        token = int(getattr(self.lib, f"llama_vocab_{name}")(self._vocab))
        return None if token < 0 else token

    def token_name(self, token: int) -> str:
        """Return the token as it stands in the vocabulary, such as "<s>"."""
        return str(self.lib.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace"))

    @property
    def chat_template(self) -> str | None:
        """The file's chat template, in Jinja; None if it has none."""
        template = self.lib.llama_model_chat_template(self.handle, None)
        return None if template is None else str(template.decode("utf-8", "replace"))

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Return the tokens of the text, without BOS; with `special`, names of control tokens become those tokens.

        Raises BadInput if the file has no tokenizer.
        """
        if not self.lib.llama_vocab_type(self._vocab):
            raise BadInput("has no tokenizer to read a text with", path=self.path, field="tokenizer.ggml.model")
        data = text.encode()
        tokens = (ctypes.c_int32 * (len(data) + 8))()
        n = self.lib.llama_tokenize(self._vocab, data, len(data), tokens, len(tokens), False, special)
        return list(tokens[:n])

    def text(self, tokens: Iterable[int]) -> bytes:
        """Return the text of the tokens in UTF-8, which may end within a character; control tokens have no text."""
        buffer = ctypes.create_string_buffer(4096)
        piece = self.lib.llama_token_to_piece
        sizes = (piece(self._vocab, token, buffer, len(buffer), 0, False) for token in tokens)
        return b"".join(buffer.raw[: max(0, size)] for size in sizes)

    def ends(self, token: int) -> bool:
        """Return whether generation ends with this token."""
        return bool(self.lib.llama_vocab_is_eog(self._vocab, token))

    @property
    def can_cut_back(self) -> bool:
        """Whether the last tokens of a sequence can be removed, and only some of its tokens copied.

        That is not so where layers keep a recurrent state.
        """
        return not (self.lib.llama_model_is_recurrent(self.handle) or self.lib.llama_model_is_hybrid(self.handle))

    def source_layers(self) -> tuple[int, ...]:
        """Return for each layer the layer whose attention weights it uses; itself for all layers of a dense model.

        -1 for a layer whose groups of heads do not all do the same.
        """
        shared = SharedAttention.from_bindings(self.lib)
        layers = range(self.n_layer)
        return tuple(layers) if shared is None else tuple(shared.source_layer(self.handle, layer) for layer in layers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.lib.llama_model_free(self.handle)


class Context:
    """A context of a model. `log` is what llama.cpp wrote while it made the context.

    With `flash_attn` None llama.cpp decides. `params` are fields of llama_context_params. Raises RuntimeProblem with
    llama.cpp's own reason if the context cannot be made.
    """

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

    def decode(self, tokens: Sequence[Token], last: int | None = None) -> Logits:
        """Return the logits after each token, [len(tokens), n_vocab], or after the last few, [last, n_vocab].

        Logits that are not asked for are not computed. Raises RuntimeProblem if llama.cpp cannot decode.
        """
        first = 0 if last is None else len(tokens) - last
        return self.decode_at(tokens, range(first, len(tokens)))

    def decode_at(self, tokens: Sequence[Token], outputs: Sequence[int]) -> Logits:
        """Return the logits after some tokens, whose ascending indices are `outputs`, [len(outputs), n_vocab].

        Raises RuntimeProblem if llama.cpp cannot decode.
        """
        self._submit(tokens, outputs)
        if not outputs:
            return np.empty((0, self.model.n_vocab), np.float32)
        return self._rows(self.lib.llama_get_logits(self.handle), len(outputs), self.model.n_vocab)

    def embed(self, tokens: Sequence[Token]) -> Logits:
        """Return the embedding of each token, [len(tokens), n_embd], from a context that has embeddings=True.

        This is the output of models without logits. Raises RuntimeProblem if llama.cpp cannot compute it.
        """
        self._submit(tokens, range(len(tokens)))
        n_embd = int(self.lib.llama_model_n_embd(self.model.handle))
        return self._rows(self.lib.llama_get_embeddings(self.handle), len(tokens), n_embd)

    def _submit(self, tokens: Sequence[Token], outputs: Sequence[int]) -> None:
        batch = self.lib.llama_batch_init(len(tokens), 0, 1 + max(len(token.also) for token in tokens))
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token.id, token.position, False
            batch.n_seq_id[i] = 1 + len(token.also)
            for j, sequence in enumerate((token.sequence, *token.also)):
                batch.seq_id[i][j] = sequence
        for i in outputs:
            batch.logits[i] = True
        status = self.lib.llama_decode(self.handle, batch)
        self.lib.llama_batch_free(batch)
        if status:
            raise RuntimeProblem(f"status {status}", field="llama_decode")

    @staticmethod
    def _rows(data: Any, n_rows: int, n_columns: int) -> Logits:
        if not data:
            raise RuntimeProblem("this model has no such output", field="llama_decode")
        rows = ctypes.cast(data, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(rows, (n_rows, n_columns)).copy()

    @property
    def n_cells(self) -> int:
        """Number of tokens that the KV cache has room for."""
        return int(self.lib.llama_n_ctx(self.handle))

    @property
    def n_sequences(self) -> int:
        """Number of sequences that the context can have at a time."""
        return int(self.lib.llama_n_seq_max(self.handle))

    @property
    def memory(self) -> Any:
        """The handle of the KV cache, for llama_memory functions."""
        return self.lib.llama_get_memory(self.handle)

    def copy_sequence(self, source: int, target: int, n: int = -1) -> None:
        """Let the sequence `target` have the first n tokens of `source`, or all of them.

        A unified cache keeps only one copy of them.
        """
        self.lib.llama_memory_seq_cp(self.memory, source, target, -1, n)

    def keep(self, sequence: int, n: int) -> None:
        """Remove all tokens of a sequence but the first n."""
        self.lib.llama_memory_seq_rm(self.memory, sequence, n, -1)

    def clear(self) -> None:
        """Remove all tokens of all sequences."""
        self.lib.llama_memory_clear(self.memory, True)

    def sequence_state(self, sequence: int = 0) -> bytes:
        """Return the state of one sequence, for restore_sequence()."""
        buffer = (ctypes.c_uint8 * self.lib.llama_state_seq_get_size(self.handle, sequence))()
        return bytes(buffer[: self.lib.llama_state_seq_get_data(self.handle, buffer, len(buffer), sequence)])

    def restore_sequence(self, state: bytes, sequence: int) -> bool:
        """Give a sequence a saved state; returns False if the state does not fit this context."""
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        with Log(self.lib):
            return int(self.lib.llama_state_seq_set_data(self.handle, buffer, len(state), sequence)) == len(state)

    def state(self) -> bytes:
        """Return the state of the whole context, for restore()."""
        buffer = (ctypes.c_uint8 * self.lib.llama_state_get_size(self.handle))()
        return bytes(buffer[: self.lib.llama_state_get_data(self.handle, buffer, len(buffer))])

    def restore(self, state: bytes) -> bool:
        """Give the context a saved state; returns False if the state does not fit this context."""
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        with Log(self.lib):
            return int(self.lib.llama_state_set_data(self.handle, buffer, len(state))) == len(state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.lib.llama_free(self.handle)
