"""Weights that make up for sharing, without training: another order of followers' heads, and a new W_O.

Align moves the heads of a follower so that each uses the source's attention weights that suit it best (heads.py). It
changes nothing but the order. Refit solves for the W_O with which the follower's attention output comes closest to that
of the dense model on a text (ridge.py). It goes from the first follower to the last, so that each is fitted to what the
fitted ones before it compute.

Neither costs anything at run time. The runtime computes all features, so quantised models can be fitted, too.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES

from ..errors import Unsupported
from ..formats.gguf_header import TensorInfo
from ..formats.tensor_copies import RawRows, TensorCopy, float_rows, raw_rows, read_f32
from ..formats.texts import Corpus
from ..llamacpp.runtime import RuntimeStatus
from ..llamacpp.token_windows import token_windows
from ..model.attention_map import following
from ..plan.plan import Plan, with_fit
from ..plan.projections import Fitting, Projections, output_columns, projections
from ..system.progress import Fraction
from ..system.threads import whole_tasks
from . import heads
from .observer import ObservedLayer, observing
from .refit import RefitOutput, Windows, refit
from .trial_model import TrialModel


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
            model, on held-out pieces of the text; None where its W_O was not to be refitted.
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
    refits: dict[int, RefitOutput] = {}
    changes: dict[TensorCopy, RawRows] = {}
    n_stages = request.how.align + request.how.refit * 2

    def stages(first: int, n: int) -> Fraction:
        return lambda fraction: watch((first + n * fraction) / n_stages)

    with TrialModel(built, plan.dense) as trial_model:
        if request.how.align:
            tensors = {layer: projections(plan.dense, plan.facts, layer) for layer in outputs}
            require_bare_heads(trial_model, tensors, "--align")
            orders = _aligned(plan, request, built, tensors, stages(0, 1))
            for layer, order in orders.items():
                changes |= moved(trial_model, tensors[layer], order, plan.facts.n_head_kv[layer])
        if request.how.refit and outputs:
            tokens = token_windows(trial_model.model, request.text, request.n_ctx, request.n_windows)
            windows = Windows(tokens, request.n_ctx, request.n_threads)
            refits = refit(trial_model, plan, outputs, changes, windows, stages(int(request.how.align), 2))
            changes |= {outputs[layer]: done.raw for layer, done in refits.items()}
    fitted = (_follower(plan, output, layer, orders[layer], refits.get(layer)) for layer, output in outputs.items())
    return Fit(tuple(fitted), changes)


def _follower(
    plan: Plan, output: TensorCopy, layer: int, order: heads.Heads, refitted: RefitOutput | None
) -> FittedFollower:
    n_head = len(order)
    moved_as_numbers = order != heads.unmoved(n_head) and not heads.can_move(n_head, output.shape[0], output.type)
    solution = refitted.solution if refitted else None
    changed = moved_as_numbers or (solution is not None and solution.ridge is not None)
    is_quantised = GGML_QUANT_SIZES[output.type][0] > 1
    sources = sorted({source for group, source in following(plan.attention) if group.layer == layer})
    follower = FittedFollower(layer, tuple(sources), order, requantised=is_quantised and changed)
    if solution is None:
        return follower
    return replace(follower, ridge=solution.ridge, error_before=solution.error_before**0.5, error=solution.error**0.5)


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
