"""Search for what each KV group of a real model should do: compute attention weights, follow other heads, or nothing.

The heads are compared in one pass over a text (group_errors.py). Maps are measured by their KL divergence to the dense
model, with output projections that are fitted to them (group_fits.py). Simple maps are searched as well: those that
only drop, or only share, KV groups or whole layers. The best map of all is bettered by exchanges, so the result costs
no more than a simple one. It is scored, beside them and quantised K caches, on text that took no part in the search.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import Unsupported
from ..fitting.fit import require_bare_heads
from ..fitting.observer import observing
from ..fitting.trial_model import TrialModel
from ..formats.gguf_header import Header
from ..formats.identity import tensors_blake3
from ..formats.shards import read_model
from ..formats.texts import Corpus, read_corpus
from ..llamacpp import runtime
from ..model.attention_map import AttentionMap, Group, check
from ..model.candidate_pairs import candidates
from ..model.facts import Facts, read_facts, require_exportable
from ..plan.stock import STOCK_KEEPS
from ..system.progress import Stages, Step, silent
from .group_errors import SCREENING_WINDOWS, GroupErrors, from_arrays, measured_errors, to_arrays
from .group_fits import GroupFits
from .group_goal import aim, decode_reads
from .group_maps import ALL, best_maps
from .group_moves import Moves
from .group_scores import GroupScores, score_attention
from .group_search import DROPS, FAST, FULL, Costs
from .map_cost import Changes, MapCosts, unchanged
from .measured_costs import MeasuredCosts
from .recorded_layers import RecordedLayers
from .request import GroupSearchRequest
from .state import State
from .text_parts import Windows, parts


@dataclass(frozen=True)
class GroupSearchResult:
    """What a search over KV groups found.

    Attributes:
        request: What was searched for.
        text: The text that was used.
        facts: Shape of the model.
        scores: The scores of the map found, and of what competes with it, on text that took no part in the search.
        drops: Mean KL divergence of dropping single groups, or all groups of single layers, on the first windows.
        cost: Mean KL divergence of the map found on the search's part of the text, in nats per token.
        n_measured: Number of maps that were measured.
        predicted_speedup: How many times as fast decoding is with `request.decode_at` tokens in the context, as the
            bytes that are read predict.
        n_fit_windows: Number of windows that output projections were fitted on, 0 if they were not.
        n_windows: Number of windows that the scores were measured on.
    """

    request: GroupSearchRequest
    text: Corpus
    facts: Facts
    scores: GroupScores
    drops: Mapping[tuple[Group, ...], float]
    cost: float
    n_measured: int
    predicted_speedup: float
    n_fit_windows: int
    n_windows: int


def search_groups(request: GroupSearchRequest, step: Step = silent) -> GroupSearchResult:
    """Search for a map that meets the budget.

    Raises BadInput where the end or the text is too small, Unsupported where the KV groups of a model cannot differ.
    """
    header = read_model(Path(request.model))
    facts, text = read_facts(header), read_corpus(request.text)
    arch = require_exportable(header)
    if not arch.causal or facts.is_shared:
        raise Unsupported("a dense language model is needed to search on", path=request.model)
    if arch.layers_only:
        reason = f"'{facts.arch}' shares whole layers only: {arch.layers_only}"
        raise Unsupported(reason, path=request.model, next_step="use --unit layer")
    size, goal = aim(request, header, facts)
    n_windows = request.n_windows // 2 if request.fast else request.n_windows
    built = runtime.require()
    stages = Stages(step, {"observing heads": 0.5, "comparing heads": 0.5, "searching": 8, "scoring": 1})
    with ExitStack() as stack:
        trial_model = stack.enter_context(TrialModel(built, header))
        if request.refit:
            layers = [layer for layer in range(facts.n_layer - facts.n_layer_nextn) if facts.n_head_kv[layer]]
            require_bare_heads(trial_model, layers, "a search that fits weights", "add --no-refit")
        fit_windows, search_windows, test_windows = parts(trial_model.model, text, request.n_ctx, n_windows)
        state = State(request.state, _settings(request, text, header, n_windows))
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="shareatt-")))
        observed = _observed(request, built, trial_model, fit_windows, state, folder, stages)
        measured_on = partial(MapCosts, trial_model, observed.fitted, n_ctx=request.n_ctx, n_threads=request.n_threads)
        measure = measured_on(search_windows, folder / "search").costs
        costs: Costs = MeasuredCosts(state, measure, len(search_windows), AttentionMap.flat)
        effort, allowed = FAST if request.fast else FULL, DROPS if request.drop_only else ALL
        moves = Moves(facts, observed.errors, size, kept=STOCK_KEEPS if request.drop_only else ())
        found = best_maps(moves, costs, goal, effort, stages("searching"), allowed)
        check(found.best.map)
        scores = score_attention(found, measured_on(test_windows, folder / "test"), facts, stages("scoring"))
    decoding = decode_reads(header, facts, request.decode_at)
    return GroupSearchResult(
        request=request,
        text=text,
        facts=facts,
        scores=scores,
        drops={move.groups: cost for move, cost in found.drops.items()},
        cost=found.best.cost,
        n_measured=costs.n_measured,
        predicted_speedup=decoding(facts.attention) / decoding(found.best.map),
        n_fit_windows=observed.n_fit_windows,
        n_windows=len(test_windows),
    )


@dataclass(frozen=True)
class _Observed:
    """`errors`: of the heads. `fitted`: returns the output projections for a map, fitted on so many windows."""

    errors: GroupErrors
    fitted: Callable[[AttentionMap], Changes]
    n_fit_windows: int


def _observed(
    request: GroupSearchRequest,
    built: runtime.RuntimeStatus,
    trial_model: TrialModel,
    windows: Windows,
    state: State,
    folder: Path,
    stages: Stages,
) -> _Observed:
    """Observe the heads. The errors come from the state if it has them."""
    header, facts, saved = trial_model.header, trial_model.facts, state.arrays()
    if saved is not None and not request.refit:
        return _Observed(from_arrays(saved), unchanged, 0)
    chosen, n_threads = windows if request.refit else windows[:SCREENING_WINDOWS], request.n_threads
    with observing(built, header.path, facts, n_ctx=request.n_ctx, n_threads=n_threads) as observer:
        recorded = RecordedLayers(observer, facts, chosen, folder, stages("observing heads"))
    if saved is None:
        pairs = () if request.drop_only else candidates(facts, request.reach)
        errors = measured_errors(recorded, header, facts, pairs, n_threads, stages("comparing heads"))
        state.save_arrays(to_arrays(errors))
    else:
        errors = from_arrays(saved)
    if not request.refit:
        return _Observed(errors, unchanged, 0)
    return _Observed(errors, GroupFits(trial_model, recorded, n_threads).changes, recorded.n_windows)


def _settings(request: GroupSearchRequest, text: Corpus, header: Header, n_windows: int) -> dict[str, object]:
    """Return what measured costs depend on."""
    return {
        "model": tensors_blake3(header) if request.state else "",
        "unit": "group",
        "text": text.sha256,
        "refit": request.refit,
        "ctx": request.n_ctx,
        "windows": n_windows,
        "reach": request.reach,
        "drop_only": request.drop_only,
    }
