"""What an attention map costs: the model runs with it on windows of a text, and is compared to the dense model."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from ..evaluation.divergence import Divergence, Quality
from ..fitting.trial_model import TrialModel
from ..formats.tensor_copies import RawRows, TensorCopy
from ..llamacpp.engine import Context, Logits, Token
from ..model.attention_map import AttentionMap
from ..model.facts import F16

Changes = Mapping[TensorCopy, RawRows]  # tensors with other contents, as bytes


def unchanged(attention: AttentionMap) -> Changes:
    """Return no changes, for any map: it keeps the weights of the file."""
    return {}


class MapCosts:
    """Measures maps on windows of `n_ctx` tokens. `fitted` returns the weights that are fitted to a map.

    `file`: a file to make, which keeps the dense model's logits, f32 [n_windows, n_scored, n_vocab]. As in
    llama-perplexity, the tokens of the second half of a window are scored.
    """

    def __init__(
        self,
        trial_model: TrialModel,
        fitted: Callable[[AttentionMap], Changes],
        windows: Sequence[Sequence[int]],
        file: Path,
        *,
        n_ctx: int,
        n_threads: int,
    ) -> None:
        self._trial_model, self._fitted, self._windows = trial_model, fitted, windows
        self._n_ctx, self._n_threads = n_ctx, n_threads
        self._n_scored = n_ctx - 1 - n_ctx // 2
        shape = (len(windows), self._n_scored, trial_model.model.n_vocab)
        self._dense = np.memmap(file, np.float32, "w+", shape=shape)
        trial_model.change(trial_model.facts.attention, {})
        for i, logits in enumerate(self._logits(range(len(windows)), F16)):
            self._dense[i] = logits

    def costs(self, found: AttentionMap, first: int, stop: int) -> list[float]:
        """Return the mean KL divergence to the dense model in each window from `first` to before `stop`.

        In nats per token.
        """
        return [float(window.mean()) for window in self._compared(found, range(first, stop)).kl]

    def quality(
        self,
        found: AttentionMap,
        type_k: GGMLQuantizationType = F16,
        changes: Changes | None = None,
    ) -> Quality:
        """Compare the model with this map and this type of K cache to the dense model.

        `changes`: changed tensors, in place of those that are fitted to the map.
        """
        return self._compared(found, range(len(self._windows)), type_k, changes).quality()

    def zeros(self, copies: Iterable[TensorCopy]) -> Changes:
        """Return the tensors with all numbers 0."""
        return {copy: self._trial_model.encoded(np.zeros(copy.shape[::-1], np.float32), copy.type) for copy in copies}

    def _compared(
        self,
        found: AttentionMap,
        windows: range,
        type_k: GGMLQuantizationType = F16,
        changes: Changes | None = None,
    ) -> Divergence:
        self._trial_model.change(found, self._fitted(found) if changes is None else changes)
        sums = Divergence(len(windows), self._n_scored)
        for row, (i, logits) in enumerate(zip(windows, self._logits(windows, type_k), strict=True)):
            sums.add(row, 0, logits, self._dense[i], np.array(self._windows[i][-self._n_scored :]))
        return sums

    def _logits(self, windows: range, type_k: GGMLQuantizationType) -> Iterator[Logits]:
        """Yield the logits that predict the scored tokens of each window, [n_scored, n_vocab]."""
        n_ctx = self._n_ctx
        sizes = {"n_ctx": n_ctx, "n_batch": n_ctx, "n_ubatch": min(n_ctx, 512)}
        threads = {"n_threads": self._n_threads, "n_threads_batch": self._n_threads}
        with Context(self._trial_model.model, flash_attn=True, type_k=type_k, **sizes, **threads) as context:
            for i in windows:
                context.clear()
                tokens = [Token(token, position) for position, token in enumerate(self._windows[i][:-1])]
                yield context.decode(tokens, last=self._n_scored)
