"""The inputs of the output projections W_O, layer by layer: what the heads compute."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..formats.tensor_copies import FloatRows
from ..llamacpp.engine import Context, Model, Token
from ..llamacpp.graph_callback import Array, InputCallback
from ..llamacpp.runtime import P_BYTES
from ..model.facts import Facts

MAX_BYTES = 4 << 30  # of the KV cache and the activations of the windows that are computed together
WIDTHS = 12  # activations of a token that a layer keeps at a time, in widths of the residual stream
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ of llama.cpp
UNLIMITED = str(1 << 40)

Take = Callable[[int, FloatRows], object]


class FeatureReader:
    """Computes windows of a text, as many together as `n_together`, each as a sequence of its own."""

    def __init__(self, context: Context, callback: InputCallback, n_together: int) -> None:
        self._context, self._callback, self.n_together = context, callback, n_together
        self._take: Take = lambda layer, features: None

    def read(self, windows: Sequence[Sequence[int]], take: Take) -> None:
        """Give `take` each layer and its features [n_tokens, n_head * head_dim], for the windows that are together.

        llama.cpp may split them further. `take` may return END, and then the layers after this one are not computed for
        these windows; or what W_O is to give them instead, [n_tokens, n_embd].
        """
        self._take = take
        for first in range(0, len(windows), self.n_together):
            together = list(enumerate(windows[first : first + self.n_together]))
            self._context.clear()
            with self._callback:
                tokens = [Token(id, position, i) for i, window in together for position, id in enumerate(window)]
                self._context.decode(tokens, last=1)

    def observe(self, name: str, layer: int, values: Array) -> object:
        return self._take(layer, values.reshape(-1, values.shape[-1]).astype("float32"))


@contextmanager
def feature_reader(
    model: Model, bin: Path, facts: Facts, *, n_windows: int, n_ctx: int, n_threads: int
) -> Iterator[FeatureReader]:
    """Yield a reader of `model` for windows of at most n_ctx tokens. `bin` is the folder of the runtime's libraries."""
    readers: list[FeatureReader] = []
    callback = InputCallback(model.lib, bin, ["attn_output"], lambda *found: readers[0].observe(*found))
    bytes_per_token = facts.kv_bytes_per_token(facts.attention) + 4 * WIDTHS * facts.n_embd
    n_together = min(n_windows, MAX_SEQUENCES, max(1, MAX_BYTES // (n_ctx * bytes_per_token)))
    n_tokens = n_together * n_ctx
    sizes = {"n_ctx": n_tokens, "n_batch": n_tokens, "n_ubatch": n_tokens, "n_seq_max": n_together}
    sizes["n_outputs_max"] = n_together  # so that no memory is reserved for the logits of all tokens
    threads = {"n_threads": n_threads, "n_threads_batch": n_threads}
    with (
        _memory_for_weights(),
        Context(model, flash_attn=True, cb_eval=callback.callback, **sizes, **threads) as context,
    ):
        readers.append(FeatureReader(context, callback, n_together))
        yield readers[0]


@contextmanager
def _memory_for_weights() -> Iterator[None]:
    """Give the contexts of this process as much memory for attention weights as they need.

    Within its own limit, the runtime would split windows that are computed together.
    """
    before = os.environ.get(P_BYTES)
    os.environ[P_BYTES] = UNLIMITED
    try:
        yield
    finally:
        if before is None:
            del os.environ[P_BYTES]
        else:
            os.environ[P_BYTES] = before
