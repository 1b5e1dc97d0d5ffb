"""Weights that make up for sharing, without training: another order of followers' heads, and a new W_O.

Align moves the heads of a follower so that each uses the source's attention weights that suit it best (heads.py). It
changes nothing but the order. Refit solves for the W_O with which the follower's attention output comes closest to that
of the dense model on a text (ridge.py). It goes from the first follower to the last, so that each is fitted to what the
fitted ones before it compute.

Neither costs anything at run time. The runtime computes all features, so quantised models can be fitted, too.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES

from ..errors import Unsupported
from ..formats.gguf_header import TensorInfo
from ..formats.tensor_copies import RawRows, TensorCopy, float_rows, raw_rows, read_f32, whole_copy
from ..formats.texts import Corpus
from ..llamacpp.runtime import RuntimeStatus
from ..llamacpp.token_windows import token_windows
from ..model.attention_map import AttentionMap, following
from ..plan.cuts import kept_columns
from ..plan.plan import Plan, with_fit
from ..plan.projections import Fitting, Projections, output_columns, projections
from ..system.progress import Fraction
from ..system.threads import whole_tasks
from . import heads, ridge
from .features import feature_reader
from .observer import ObservedLayer, observing
from .trial_model import TrialModel

HELD_OUT = 4  # every fourth window chooses the ridge
Targets = npt.NDArray[np.float32]  # [n_windows, n_ctx, n_embd]


@dataclass(frozen=True)
class FitRequest:
    """`n_ctx`: tokens of a window. `n_windows`: maximum number of windows."""

    how: Fitting
    text: Corpus
    n_ctx: int = 256
    n_windows: int = 64
    n_threads: int = 2


@dataclass(frozen=True)
class FittedFollower:
    """What was done to a follower.

    Attributes:
        layer: Its number, from 0.
        sources: The layers whose attention weights it uses.
        heads: For each of its heads, the head of the source whose attention weights it uses.
        ridge: The ridge of the regression; None where its W_O was not refitted, or no refit was better.
        error_before: Norm of what is missing in its attention output before the refit, relative to that of the dense
            model, on held-out windows; None where its W_O was not to be refitted.
        error: The same after the refit.
        requantised: Whether its W_O was quantised again, to the type that it had.
    """

    layer: int
    sources: tuple[int, ...]
    heads: heads.Heads
    ridge: float | None = None
    error_before: float | None = None
    error: float | None = None
    requantised: bool = False


@dataclass(frozen=True)
class Fit:
    """`changes`: whole tensors of the SA file, as bytes."""

    followers: tuple[FittedFollower, ...]
    changes: Mapping[TensorCopy, RawRows]


def fit(plan: Plan, request: FitRequest, built: RuntimeStatus, watch: Fraction = lambda fraction: None) -> Fit:
    """Fit the layers of a plan that share or lack heads.

    Raises BadInput where the text is too short, Unsupported where heads cannot move.
    """
    outputs = {
        layer: output
        for layer in plan.attention.touched
        if (output := output_columns(plan.dense, plan.facts, plan.attention, layer)) is not None
    }
    orders = {layer: heads.unmoved(plan.facts.n_head[layer]) for layer in outputs}
    refits: dict[int, ridge.Solution] = {}
    changes: dict[TensorCopy, RawRows] = {}
    n_stages = request.how.align + request.how.refit * (1 + len(outputs))

    def stage(number: int) -> Fraction:
        return lambda fraction: watch((number + fraction) / n_stages)

    with TrialModel(built, plan.dense) as trial_model:
        if request.how.align:
            tensors = {layer: projections(plan.dense, plan.facts, layer) for layer in outputs}
            require_bare_heads(trial_model, tensors, "--align")
            orders = _aligned(plan, request, built, tensors, stage(0))
            for layer, order in orders.items():
                changes |= moved(trial_model, tensors[layer], order, plan.facts.n_head_kv[layer])
        if request.how.refit:
            windows = token_windows(trial_model.model, request.text, request.n_ctx, request.n_windows)
            first = int(request.how.align)
            with _dense_outputs(trial_model, plan.facts.attention, outputs, windows, request, stage(first)) as targets:
                for number, (layer, output) in enumerate(outputs.items(), first + 1):
                    trial_model.change(plan.attention, changes)
                    before = changes.get(output, raw_rows(output))
                    refits[layer], changes[output] = _refitted(
                        trial_model,
                        output,
                        kept_columns(plan.facts, plan.attention, layer),
                        before,
                        layer,
                        windows,
                        targets[layer],
                        request,
                        stage(number),
                    )
    fitted = (_follower(plan, output, layer, orders[layer], refits.get(layer)) for layer, output in outputs.items())
    return Fit(tuple(fitted), changes)


def _follower(
    plan: Plan, output: TensorCopy, layer: int, order: heads.Heads, refit: ridge.Solution | None
) -> FittedFollower:
    n_head = len(order)
    moved_as_numbers = order != heads.unmoved(n_head) and not heads.can_move(n_head, output.shape[0], output.type)
    changed = moved_as_numbers or (refit is not None and refit.ridge is not None)
    is_quantised = GGML_QUANT_SIZES[output.type][0] > 1
    sources = sorted({source for group, source in following(plan.attention) if group.layer == layer})
    follower = FittedFollower(layer, tuple(sources), order, requantised=is_quantised and changed)
    if refit is None:
        return follower
    return replace(follower, ridge=refit.ridge, error_before=refit.error_before**0.5, error=refit.error**0.5)


def store(plan: Plan, done: Fit, path: Path) -> Plan:
    """Write the changed tensors to a file of their own, and return the plan that takes them from there."""
    fitted, digests = {}, []
    with path.open("wb") as file:
        for copy in plan.fitted:
            data = np.ascontiguousarray(done.changes[copy]).tobytes()
            fitted[copy] = TensorInfo(copy.name, copy.shape, copy.type, path, file.tell(), len(data))
            digests.append(hashlib.sha256(data).hexdigest())
            file.write(data)
    return with_fit(plan, fitted, digests)


# ---------------------------------------------------------------- align


def _aligned(
    plan: Plan, request: FitRequest, built: RuntimeStatus, tensors: Mapping[int, Projections], watch: Fraction
) -> dict[int, heads.Heads]:
    """Return the order of heads of each follower."""
    facts = plan.facts
    source_layers = plan.attention.source_layers
    assert source_layers is not None  # noqa: S101  (fitted_tensors() refuses --align for other maps)
    weights = {layer: read_f32(each.output) for layer, each in tensors.items()}
    costs = {layer: np.zeros((facts.n_head[layer],) * 2) for layer in tensors}

    def add(observed: Mapping[int, ObservedLayer], layer: int) -> None:
        source, ours = observed[source_layers[layer]], observed[layer]
        costs[layer] += heads.costs(source.weights, ours.weights, ours.values, weights[layer])

    with observing(built, plan.dense.path, facts, n_ctx=request.n_ctx, n_threads=request.n_threads) as observer:
        n_windows = min(heads.ALIGN_WINDOWS, request.n_windows)
        windows = token_windows(observer.model, request.text, request.n_ctx, n_windows)
        for i, tokens in enumerate(windows):
            watch(i / len(windows))
            observed = observer.layers(tokens)
            with whole_tasks(request.n_threads) as pool:
                list(pool.map(partial(add, observed), tensors))
    return {layer: heads.match(found, facts.n_head_kv[layer]) for layer, found in costs.items()}


def require_bare_heads(
    trial_model: TrialModel, layers: Iterable[int], purpose: str, next_step: str | None = None
) -> None:
    """Raise Unsupported where something lies between the heads and W_O (a norm, a gate): it would have to move along.

    `purpose` says in the message what is not possible then.
    """
    for layer in sorted(layers):
        if (name := trial_model.inputs.get(f"blk.{layer}.attn_output.weight")) != f"kqv_out-{layer}":
            raise Unsupported(
                f"'{name}' stands between the heads of layer {layer} and their output projection, "
                f"so the heads cannot be moved, which {purpose} needs",
                path=trial_model.header.path,
                next_step=next_step,
            )


def moved(
    trial_model: TrialModel, tensors: Projections, order: heads.Heads, n_head_kv: int
) -> dict[TensorCopy, RawRows]:
    """Return W_V, W_O and the bias of V with the heads in another order.

    W_O moves as bytes where a head is a whole number of blocks, and is quantised again elsewhere.
    """
    groups = heads.groups_of(order, n_head_kv)
    changes = {copy: heads.moved_rows(raw_rows(copy), groups) for copy in (tensors.v, tensors.v_bias) if copy}
    output = tensors.output
    raw = raw_rows(output)
    if heads.can_move(len(order), output.shape[0], output.type):
        changes[output] = heads.moved_columns(raw, order)
    elif order != heads.unmoved(len(order)):
        values = heads.moved_columns(float_rows(raw, output.type).view(np.uint8), order).view(np.float32)
        changes[output] = trial_model.encoded(values, output.type)
    else:
        changes[output] = raw
    return changes


# ---------------------------------------------------------------- refit


@contextmanager
def _dense_outputs(
    trial_model: TrialModel,
    dense: AttentionMap,
    outputs: Mapping[int, TensorCopy],
    windows: Sequence[Sequence[int]],
    request: FitRequest,
    watch: Fraction,
) -> Iterator[Mapping[int, Targets]]:
    """Yield what W_O of these layers makes in the dense model; in files, as they may take more than there is memory."""
    weights = {layer: read_f32(whole_copy(output.origin)).T for layer, output in outputs.items()}
    with TemporaryDirectory(prefix="shareatt-") as folder:
        shapes = {layer: (len(windows), request.n_ctx, output.shape[1]) for layer, output in outputs.items()}
        targets = {
            layer: np.memmap(Path(folder) / str(layer), np.float32, "w+", shape=shape)
            for layer, shape in shapes.items()
        }
        trial_model.change(dense, {})
        with feature_reader(
            trial_model.model, trial_model.bin, n_ctx=request.n_ctx, n_threads=request.n_threads
        ) as reader:
            for i, tokens in enumerate(windows):
                watch(i / len(windows))
                for layer, features in reader.read(list(outputs), tokens).items():
                    targets[layer][i] = features @ weights[layer]
        yield targets


def _refitted(
    trial_model: TrialModel,
    output: TensorCopy,
    columns: Sequence[int],
    before: RawRows,
    layer: int,
    windows: Sequence[Sequence[int]],
    targets: Targets,
    request: FitRequest,
    watch: Fraction,
) -> tuple[ridge.Solution, RawRows]:
    """Return the solution for a follower's W_O, and the new W_O; `before` where no solution was better.

    The features are what the layer's heads compute in the trial model; `columns` are those of heads that are kept.
    """
    fitted, held_out = (ridge.NormalEquations.empty(output.shape[0], output.shape[1]) for _ in range(2))
    n_tokens = 0
    sizes = {"n_ctx": request.n_ctx, "n_threads": request.n_threads}
    with feature_reader(trial_model.model, trial_model.bin, **sizes) as reader:
        for i, tokens in enumerate(windows):
            watch(i / len(windows))
            features = reader.read([layer], tokens)[layer][:, columns]
            n_tokens += len(features)
            equations = held_out if i % HELD_OUT == HELD_OUT - 1 else fitted
            equations.add(features, targets[i])
    importance = (np.diag(fitted.gram + held_out.gram) / n_tokens).astype(np.float32)
    chooses = held_out if len(windows) >= HELD_OUT else fitted  # too few windows to hold one out
    solution = ridge.solve(fitted, chooses, float_rows(before, output.type).astype(np.float64))
    if solution.ridge is None:
        return solution, before
    return solution, trial_model.encoded(solution.weights.astype(np.float32), output.type, importance)
