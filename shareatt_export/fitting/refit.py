"""Refit: for each layer that a map changes, the W_O with which its heads come closest to the dense model's output.

The layers are solved from the first to the last, so that each is fitted to what the fitted ones before it compute.
Where all windows are computed together, one pass is enough: the heads of a layer are observed, its W_O is solved, and
the pass goes on with what the new W_O gives. Otherwise each layer takes a pass.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from ..errors import RuntimeProblem
from ..formats.tensor_copies import FloatRows, RawRows, TensorCopy, float_rows, raw_rows, read_f32, whole_copy
from ..llamacpp.graph_callback import END
from ..plan.cuts import kept_columns
from ..plan.plan import Plan
from ..system.progress import Fraction
from . import ridge
from .features import FeatureReader, feature_reader
from .trial_model import TrialModel

HELD_OUT = 4  # every fourth piece of the text chooses the ridge
Targets = npt.NDArray[np.float32]  # [n_windows * n_ctx, n_embd]


@dataclass(frozen=True)
class Windows:
    """Windows of a text, of `n_ctx` tokens each, and how many threads compute them."""

    tokens: Sequence[Sequence[int]]
    n_ctx: int
    n_threads: int

    @property
    def n_tokens(self) -> int:
        return len(self.tokens) * self.n_ctx

    @property
    def n_piece(self) -> int:
        """Tokens of a piece: a window, or less where there are too few windows to hold one out."""
        return self.n_ctx if len(self.tokens) >= HELD_OUT else max(1, self.n_tokens // HELD_OUT)


@dataclass(frozen=True)
class RefitOutput:
    """The W_O of a layer after the refit, and its bytes: those before where no solution was better."""

    solution: ridge.Solution
    raw: RawRows


def refit(
    trial_model: TrialModel,
    plan: Plan,
    outputs: Mapping[int, TensorCopy],
    changes: Mapping[TensorCopy, RawRows],
    windows: Windows,
    watch: Fraction,
) -> dict[int, RefitOutput]:
    """Return the new W_O of each layer of `outputs`. `changes` are tensors that were changed before.

    Raises RuntimeProblem if the model's graph does not use one of these tensors.
    """

    def half(first: float) -> Fraction:
        return lambda fraction: watch(first + fraction / 2)

    with _dense_outputs(trial_model, plan, outputs, windows, half(0)) as targets:
        trial_model.change(plan.attention, changes)
        with _reader(trial_model, windows) as reader:
            refits = _Refits(trial_model, plan, outputs, changes, targets, windows, half(0.5))
            for _ in outputs:
                if len(refits.done) < len(outputs):
                    reader.read(windows.tokens, refits.take)
    if unused := [output.name for layer, output in outputs.items() if layer not in refits.done]:
        raise RuntimeProblem("the model's graph does not use it", path=plan.dense.path, field=f"tensor '{unused[0]}'")
    return refits.done


def _reader(trial_model: TrialModel, windows: Windows) -> AbstractContextManager[FeatureReader]:
    sizes = {"n_windows": len(windows.tokens), "n_ctx": windows.n_ctx, "n_threads": windows.n_threads}
    return feature_reader(trial_model.model, trial_model.bin, trial_model.facts, **sizes)


@contextmanager
def _dense_outputs(
    trial_model: TrialModel, plan: Plan, outputs: Mapping[int, TensorCopy], windows: Windows, watch: Fraction
) -> Iterator[Mapping[int, Targets]]:
    """Yield what W_O of these layers makes in the dense model; in files, as they may take more than there is memory."""
    weights = {layer: read_f32(whole_copy(output.origin)).T for layer, output in outputs.items()}
    n_done, last = dict.fromkeys(outputs, 0), max(outputs)
    with TemporaryDirectory(prefix="shareatt-") as folder:
        targets = {
            layer: np.memmap(Path(folder) / str(layer), np.float32, "w+", shape=(windows.n_tokens, output.shape[1]))
            for layer, output in outputs.items()
        }

        def take(layer: int, features: FloatRows) -> object:
            watch((n_done[last] + len(features) * (layer + 1) / (last + 1)) / windows.n_tokens)
            if layer in targets:
                first, n_done[layer] = n_done[layer], n_done[layer] + len(features)
                targets[layer][first : n_done[layer]] = features @ weights[layer]
            return END if layer == last else None

        trial_model.change(plan.facts.attention, {})
        with _reader(trial_model, windows) as reader:
            reader.read(windows.tokens, take)
        yield targets


class _Refits:
    """What is solved, and the sums over the windows for the layer in turn."""

    def __init__(
        self,
        trial_model: TrialModel,
        plan: Plan,
        outputs: Mapping[int, TensorCopy],
        changes: Mapping[TensorCopy, RawRows],
        targets: Mapping[int, Targets],
        windows: Windows,
        watch: Fraction,
    ) -> None:
        self._trial_model, self._plan, self._outputs, self._changes = trial_model, plan, outputs, changes
        self._targets, self._windows, self._watch = targets, windows, watch
        self._left = sorted(outputs)
        self.done: dict[int, RefitOutput] = {}
        self._begin()

    def _begin(self) -> None:
        output = self._outputs[self._left[0]]
        self._fitted, self._held_out = (ridge.NormalEquations.empty(*output.shape[:2]) for _ in range(2))
        self._n_tokens = 0

    def take(self, layer: int, features: FloatRows) -> object:
        """Take the features of a layer; return what W_O is to give, or END, as FeatureReader.read() says."""
        together = len(features) == self._windows.n_tokens
        self._watch(self._fraction(layer, together))
        if layer != self._left[0]:
            return None
        kept = features[:, kept_columns(self._plan.facts, self._plan.attention, layer)]
        self._add(kept)
        if self._n_tokens < self._windows.n_tokens:
            return END
        output, done = self._outputs[layer], self._solved(layer)
        self._trial_model.write(output, done.raw)
        self.done[layer] = done
        self._left.pop(0)
        if not self._left:
            return END
        self._begin()
        return kept @ float_rows(done.raw, output.type).T if together else END

    def _fraction(self, layer: int, together: bool) -> float:
        if together:
            return (layer + 1) / (max(self._outputs) + 1)
        return (len(self.done) + self._n_tokens / self._windows.n_tokens) / len(self._outputs)

    def _add(self, features: FloatRows) -> None:
        rows = np.arange(self._n_tokens, self._n_tokens + len(features))
        targets, held_out = self._targets[self._left[0]], rows // self._windows.n_piece % HELD_OUT == HELD_OUT - 1
        self._fitted.add(features[~held_out], targets[rows[~held_out]])
        self._held_out.add(features[held_out], targets[rows[held_out]])
        self._n_tokens += len(features)

    def _solved(self, layer: int) -> RefitOutput:
        output = self._outputs[layer]
        before = self._changes.get(output)
        before = raw_rows(output) if before is None else before
        importance = (np.diag(self._fitted.gram + self._held_out.gram) / self._n_tokens).astype(np.float32)
        solution = ridge.solve(self._fitted, self._held_out, float_rows(before, output.type).astype(np.float64))
        if solution.ridge is None:
            return RefitOutput(solution, before)
        encoded = self._trial_model.encoded(solution.weights.astype(np.float32), output.type, importance)
        return RefitOutput(solution, encoded)
