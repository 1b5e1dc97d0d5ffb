"""What the layers of a dense model compute on windows of a text, kept in files of half precision.

An Observer (fitting/observer.py) shows one window at a time. A search asks for other pairs of heads again and again, so
it keeps the attention weights and V of all windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..fitting.observer import ObservedLayer, Observer
from ..model.facts import Facts
from ..system.progress import Fraction
from ..system.staging import check_space

MAX_BYTES = 4 << 30  # of a record; a big model gets fewer windows
NEXT_STEP = "set TMPDIR to a folder that has room"


@dataclass(frozen=True)
class RecordedLayer:
    """`weights`: [n_windows, n_head, n_tokens, n_tokens]; `values`: V, [n_windows, n_head_kv, n_tokens, head_dim]."""

    weights: npt.NDArray[np.float16]
    values: npt.NDArray[np.float16]


class RecordedLayers:
    """The layers that have attention, by number, on the first of the windows, as many as MAX_BYTES has room for.

    `folder`: an empty folder. Raises OutputRefused if it has no room, RuntimeProblem where Observer.layers() does.
    """

    def __init__(
        self, observer: Observer, facts: Facts, windows: Sequence[Sequence[int]], folder: Path, watch: Fraction
    ) -> None:
        n = len(windows[0])
        n_bytes = 2 * sum(n * n * facts.n_head[layer] + n * facts.n_embd_v(layer) for layer in range(facts.n_layer))
        self.n_tokens = 0
        self.n_windows = max(1, min(len(windows), MAX_BYTES // n_bytes))
        check_space(folder, self.n_windows * n_bytes, NEXT_STEP)
        self.layers: dict[int, RecordedLayer] = {}
        for i, tokens in enumerate(windows[: self.n_windows]):
            watch(i / self.n_windows)
            self.n_tokens += len(tokens)
            for layer, found in observer.layers(tokens).items():
                if i == 0:
                    self.layers[layer] = self._made(folder, layer, found)
                self.layers[layer].weights[i], self.layers[layer].values[i] = found.weights, found.values

    def _made(self, folder: Path, layer: int, found: ObservedLayer) -> RecordedLayer:
        def made(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float16]:
            return np.memmap(folder / f"{name}-{layer}", np.float16, "w+", shape=(self.n_windows, *shape))

        return RecordedLayer(made("weights", found.weights.shape), made("values", found.values.shape))

    def weights(self, layer: int, window: int, heads: Sequence[int] | slice = slice(None)) -> npt.NDArray[np.float32]:
        """Return attention weights of a layer on a window, [n_head, n_tokens, n_tokens], all or some heads."""
        return np.asarray(self.layers[layer].weights[window][heads], np.float32)

    def values(self, layer: int, window: int) -> npt.NDArray[np.float32]:
        """Return V of a layer on a window, [n_head_kv, n_tokens, head_dim]."""
        return np.asarray(self.layers[layer].values[window], np.float32)
