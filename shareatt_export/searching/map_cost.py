"""What a source map costs: the model runs with it, on windows of a text, beside the dense model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType

from ..evaluation.divergence import Divergence, Quality
from ..fitting.trial_model import TrialModel
from ..formats.tensor_copies import RawRows, TensorCopy
from ..llamacpp.engine import Context, Logits, Token
from ..model.candidate_pairs import Pair
from ..model.facts import F16
from ..model.spans import SourceMap, followers
from .pair_fits import PairFit


class MapCosts:
    """The dense model's logits are kept in a file."""

    def __init__(
        self,
        trial: TrialModel,
        fits: Mapping[Pair, PairFit],
        parts: Sequence[Sequence[int]],
        file: Path,
        n_ctx: int,
        n_threads: int,
    ) -> None:
        self._trial, self._fits, self._parts, self._n, self._n_threads = trial, fits, parts, n_ctx, n_threads
        shape = (len(parts), n_ctx - 1 - n_ctx // 2, trial.model.n_vocab)
        self._dense = np.memmap(file, np.float32, "w+", shape=shape)
        trial.set(tuple(range(trial.model.n_layer)), {})
        for i, logits in enumerate(self._logits(F16)):
            self._dense[i] = logits

    def cost(self, source_layers: SourceMap) -> float:
        return self.quality(source_layers).kl.value

    def quality(
        self,
        source_layers: SourceMap,
        type_k: GGMLQuantizationType = F16,
        changes: Mapping[TensorCopy, RawRows] | None = None,
    ) -> Quality:
        """With the followers fitted to their sources, or with other changes."""
        if changes is None:
            pairs = [Pair(source_layers[layer], layer) for layer in followers(source_layers)]
            changes = {copy: raw for pair in pairs for copy, raw in self._fit(pair).items()}
        self._trial.set(source_layers, changes)
        first = self._n // 2 + 1
        sums = Divergence(*self._dense.shape[:2])
        for i, logits in enumerate(self._logits(type_k)):
            sums.add(i, 0, logits, self._dense[i], np.array(self._parts[i][first:]))
        return sums.quality()

    def zeros(self, copies: Iterable[TensorCopy]) -> dict[TensorCopy, RawRows]:
        return {copy: self._trial.encoded(np.zeros(copy.shape[::-1], np.float32), copy.type) for copy in copies}

    def _fit(self, pair: Pair) -> Mapping[TensorCopy, RawRows]:
        """Pairs out of reach, which only baselines have, are not fitted."""
        return self._fits[pair].changes if pair in self._fits else {}

    def _logits(self, type_k: GGMLQuantizationType) -> Iterator[Logits]:
        """Of each window, those after the second half's tokens but for the last, as in llama-perplexity."""
        n, threads = self._n, self._n_threads
        params = {"n_batch": n, "n_ubatch": min(n, 512), "n_threads": threads, "n_threads_batch": threads}
        with Context(self._trial.model, True, n_ctx=n, type_k=type_k, **params) as context:
            for tokens in self._parts:
                context.clear()
                yield context.decode([Token(token, i) for i, token in enumerate(tokens)])[n // 2 : -1]
