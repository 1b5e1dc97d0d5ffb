"""Weights that make up for sharing, without training: followers' heads in the best order, and their W_O anew.

align moves the heads of a follower so that each gets the attention weights, of those that the source has, which suit it
best (heads.py). It changes nothing but the order. refit solves for the W_O with which the follower's attention output
comes closest to that of the dense model on a text (ridge.py), in order of depth, with the followers before it fitted
already.

Neither costs anything at run time, and the runtime computes all features, so quantised models can be fitted, too.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES

from ..errors import Unsupported
from ..formats.gguf_header import TensorInfo
from ..formats.tensor_copies import RawRows, TensorCopy, float_rows, raw_rows, read_f32
from ..formats.texts import Text
from ..llamacpp.engine import Model
from ..llamacpp.runtime import RuntimeStatus
from ..llamacpp.token_windows import token_windows
from ..model.spans import followers
from ..plan.plan import Plan, with_fit
from ..plan.projections import Fitting, Projections, projections
from ..system.progress import Fraction
from . import heads, ridge
from .features import Features
from .observer import Observer
from .trial_model import TrialModel

HELD_OUT = 4  # one in so many windows chooses the ridge
N_ALIGN = 16  # windows are enough to tell heads apart


@dataclass(frozen=True)
class FitRequest:
    how: Fitting
    text: Text
    n_ctx: int = 256  # tokens of a window
    n_windows: int = 64
    n_threads: int = 2


@dataclass(frozen=True)
class FittedFollower:
    """What was done for a layer. Errors are of its attention output, relative to that of the dense model."""

    layer: int
    source: int
    heads: heads.Heads  # for each of its heads, the one of the source whose weights it uses
    ridge: float | None = None  # None: its W_O was better as it was, or was not to be refitted
    error_before: float | None = None
    error: float | None = None
    requantised: bool = False  # its W_O, which stays of the type that it was


@dataclass(frozen=True)
class Fit:
    """`changes` are whole tensors of the SA file, as bytes."""

    followers: tuple[FittedFollower, ...]
    changes: Mapping[TensorCopy, RawRows]


def fit(plan: Plan, request: FitRequest, built: RuntimeStatus, watch: Fraction = lambda fraction: None) -> Fit:
    """Raises BadInput where the text is too short, Unsupported where the model's heads cannot be moved."""
    layers = followers(plan.source_layers)
    tensors = {layer: projections(plan.dense, plan.facts, layer) for layer in layers}
    unmoved = {layer: tuple(range(plan.facts.n_head[layer])) for layer in layers}
    fitted = {layer: FittedFollower(layer, plan.source_layers[layer], unmoved[layer]) for layer in layers}
    n_steps = request.how.align + request.how.refit * len(layers)
    done = 0

    def part(fraction: float) -> None:
        watch((done + fraction) / n_steps)

    changes: dict[TensorCopy, RawRows] = {}
    with TrialModel(built, plan.dense) as trial:
        if request.how.align:
            for layer, order in _align(plan, request, built, trial, tensors, part).items():
                fitted[layer] = replace(fitted[layer], heads=order)
                changes |= moved(trial, tensors[layer], order, plan.facts.n_head_kv[layer])
            done += 1
        if request.how.refit:
            with Model(trial.lib, plan.dense.path) as dense:
                parts = token_windows(dense, request.text, request.n_ctx, request.n_windows)
                for layer in layers:
                    trial.set(plan.source_layers, changes)
                    solution, changed = _refit(
                        trial, dense, tensors[layer].output, changes, layer, parts, request, part
                    )
                    changes |= changed
                    fitted[layer] = replace(
                        fitted[layer],
                        ridge=solution.ridge,
                        error_before=solution.error_before**0.5,
                        error=solution.error**0.5,
                    )
                    done += 1
    told = (replace(of, requantised=_requantised(tensors[of.layer].output, of)) for of in fitted.values())
    return Fit(tuple(told), changes)


def _requantised(output: TensorCopy, follower: FittedFollower) -> bool:
    n_head = len(follower.heads)
    moved = follower.heads != tuple(range(n_head)) and not heads.can_move(n_head, output.shape[0], output.type)
    return GGML_QUANT_SIZES[output.type][0] > 1 and (moved or follower.ridge is not None)


def store(plan: Plan, done: Fit, path: Path) -> Plan:
    """Write the new tensors to a file of their own; the plan that takes them from there."""
    fitted, digests = {}, []
    with path.open("wb") as file:
        for copy in plan.fitted:
            data = np.ascontiguousarray(done.changes[copy]).tobytes()
            fitted[copy] = TensorInfo(copy.name, copy.shape, copy.type, path, file.tell(), len(data))
            digests.append(hashlib.sha256(data).hexdigest())
            file.write(data)
    return with_fit(plan, fitted, digests)


# ---------------------------------------------------------------- align


def _align(
    plan: Plan,
    request: FitRequest,
    built: RuntimeStatus,
    trial: TrialModel,
    tensors: Mapping[int, Projections],
    watch: Fraction,
) -> dict[int, heads.Heads]:
    facts = plan.facts
    require_bare_heads(trial, tensors, "--align")
    weights = {layer: read_f32(t.output) for layer, t in tensors.items()}
    costs = {layer: np.zeros((facts.n_head[layer],) * 2) for layer in tensors}
    with Observer(built, plan.dense.path, facts, request.n_ctx, request.n_threads) as observer:
        parts = token_windows(observer.model, request.text, request.n_ctx, min(N_ALIGN, request.n_windows))
        for i, tokens in enumerate(parts):
            watch(i / len(parts))
            seen = observer.layers(tokens)
            for layer in tensors:
                source, ours = seen[plan.source_layers[layer]], seen[layer]
                costs[layer] += heads.costs(source.weights, ours.weights, ours.values, weights[layer])
    return {layer: heads.match(found, facts.n_head_kv[layer]) for layer, found in costs.items()}


def require_bare_heads(trial: TrialModel, layers: Iterable[int], what: str) -> None:
    """Whatever lies between the heads and W_O (a norm, a gate) would have to move along. Raises Unsupported."""
    for layer in sorted(layers):
        if (name := trial.feeds.get(f"blk.{layer}.attn_output.weight")) != f"kqv_out-{layer}":
            raise Unsupported(
                f"{trial.header.path}: '{name}' stands between the heads of layer {layer} and their output projection, "
                f"so they cannot be moved: not for {what}"
            )


def moved(trial: TrialModel, tensors: Projections, order: heads.Heads, n_head_kv: int) -> dict[TensorCopy, RawRows]:
    """W_V, W_O and the bias of V with the heads in another order; bytes are moved where heads are whole blocks."""
    groups = heads.groups_of(order, n_head_kv)
    changes = {copy: heads.moved_rows(raw_rows(copy), groups) for copy in (tensors.v, tensors.v_bias) if copy}
    output = tensors.output
    raw = raw_rows(output)
    if heads.can_move(len(order), output.shape[0], output.type):
        changes[output] = heads.moved_columns(raw, order)
    elif order != tuple(range(len(order))):
        values = heads.moved_columns(float_rows(raw, output.type).view(np.uint8), order).view(np.float32)
        changes[output] = trial.encoded(values, output.type)
    else:
        changes[output] = raw
    return changes


# ---------------------------------------------------------------- refit


def _refit(
    trial: TrialModel,
    dense: Model,
    output: TensorCopy,
    changes: Mapping[TensorCopy, RawRows],
    layer: int,
    parts: Sequence[Sequence[int]],
    request: FitRequest,
    watch: Fraction,
) -> tuple[ridge.Solution, dict[TensorCopy, RawRows]]:
    """W_O anew. Features are what the follower's heads bring in the trial, targets what W_O makes of the dense ones."""
    projection = read_f32(output)
    sums = [ridge.Normal.empty(output.shape[0], output.shape[1]) for _ in range(2)]
    n = 0
    size = request.n_ctx, request.n_threads
    with Features(trial.model, trial.bin, *size) as ours, Features(dense, trial.bin, *size) as theirs:
        for i, tokens in enumerate(parts):
            watch(i / len(parts))
            features = ours.of(layer, tokens)
            n += len(features)
            sums[i % HELD_OUT == HELD_OUT - 1].add(features, theirs.of(layer, tokens) @ projection.T)
    before = float_rows(changes.get(output, raw_rows(output)), output.type).astype(np.float64)
    chosen, heldout = sums if len(parts) >= HELD_OUT else (sums[0], sums[0])
    solution = ridge.solve(chosen, heldout, before)
    if solution.ridge is None:
        return solution, {output: changes.get(output, raw_rows(output))}
    importance = (np.diag(sums[0].gram + sums[1].gram) / n).astype(np.float32)
    return solution, {output: trial.encoded(solution.weights.astype(np.float32), output.type, importance)}
