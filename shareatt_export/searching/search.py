"""Search for the spans of a real model.

Pairs of layers are fitted, and maps are measured by their KL divergence to the dense model. What is found is scored on
text that took no part in the search.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import BadInput, Unsupported
from ..fitting.fit import require_bare_heads
from ..fitting.observer import observing
from ..fitting.trial_model import TrialModel
from ..formats.gguf_header import Header
from ..formats.identity import tensors_blake3
from ..formats.shards import read_model
from ..formats.texts import Corpus, read_corpus
from ..llamacpp import runtime
from ..model.candidate_pairs import Pair, candidates
from ..model.facts import Facts, read_facts, require_exportable
from ..model.spans import SourceMap, spans_of, spans_text
from ..system.progress import Fraction, Stages, Step, silent
from .beam import BeamSearch, CostedLayers, Settings, n_followers
from .map_cost import MapCosts
from .measured_costs import MeasuredCosts
from .pair_fits import PairFit, PairFitter, fitted
from .request import Budget, SearchRequest
from .saved_fits import from_arrays, to_arrays
from .scoring import ScoredMap, score_maps
from .state import State
from .text_parts import Windows, parts


@dataclass(frozen=True)
class SearchResult:
    """What a search found. Costs are mean KL divergences from the dense model in nats per token.

    The qualities of `path`, `chosen`, `dropped` and `baselines` were measured on text that took no part in the search.

    Attributes:
        request: What was searched for.
        text: The text that was used.
        facts: Shape of the model.
        path: The best map for each number of followers, the dense model first.
        chosen: The best map that meets the budget, the last one of `path`.
        dropped: The dense model without any attention in the followers of `chosen`; None if there are none.
        baselines: The late span, blocks of layers, and the dense model with quantised K caches.
        singles: The cost of each follower alone, by the number of its layer.
        cost: The cost of `chosen` on the search's part of the text.
        n_measured: Number of maps that were measured.
        n_windows: Number of windows that the scores were measured on.
    """

    request: SearchRequest
    text: Corpus
    facts: Facts
    path: tuple[ScoredMap, ...]
    chosen: ScoredMap
    dropped: ScoredMap | None
    baselines: tuple[ScoredMap, ...]
    singles: Mapping[int, float]
    cost: float
    n_measured: int
    n_windows: int

    @property
    def spans_text(self) -> str:
        """The spans of the chosen map, as --spans takes them."""
        return spans_text(spans_of(self.chosen.source_layers))

    @property
    def dropping_is_as_good(self) -> bool:
        """Whether the followers' attention can be left away at no more loss than sharing it."""
        return self.dropped is not None and self.dropped.quality.kl.value <= self.chosen.quality.kl.value


def search(request: SearchRequest, step: Step = silent) -> SearchResult:
    """Search for a map that meets the budget.

    Raises BadInput where the budget or the text is too small, Unsupported where the model cannot share.
    """
    header = read_model(Path(request.model))
    facts, text = read_facts(header), read_corpus(request.text)
    if not require_exportable(header).causal or facts.is_shared:
        raise Unsupported("a dense language model is needed to search on", path=request.model)
    pairs = candidates(facts, request.reach)
    budget = _checked_budget(request, facts, pairs)
    built = runtime.require()
    needs_fits = request.align or request.refit
    stages = Stages(step, {"fitting pairs": 2 * needs_fits + 0.1, "searching": 5, "scoring": 1})
    with ExitStack() as stack:
        trial_model = stack.enter_context(TrialModel(built, header))
        if needs_fits:
            layers = {layer for pair in pairs for layer in pair}
            require_bare_heads(trial_model, layers, "a search that fits weights", "add --no-align --no-refit")
        fit_windows, search_windows, test_windows = parts(trial_model.model, text, request.n_ctx, request.n_windows)
        state = State(request.state, _settings(request, text, header))
        if (saved := state.arrays()) is not None:
            fits = from_arrays(saved, header, facts)
        else:
            fits = _fit_pairs(request, built, facts, trial_model, pairs, fit_windows, stages("fitting pairs"))
            state.save_arrays(to_arrays(fits))
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="shareatt-")))
        changes = partial(fitted, fits)
        measured_on = partial(MapCosts, trial_model, changes, n_ctx=request.n_ctx, n_threads=request.n_threads)
        map_costs = measured_on(search_windows, folder / "search")

        def measure(source_layers: SourceMap, first: int, stop: int) -> list[float]:
            return map_costs.costs(facts.of_layers(source_layers), first, stop)

        costs = MeasuredCosts(state, measure, len(search_windows), tuple)
        errors = {pair: fit.error for pair, fit in fits.items()}
        beam_search = BeamSearch(facts.n_layer, errors, costs, Settings(beam=request.beam))
        path = _searched(beam_search, request, budget, facts, stages("searching"))
        watch = stages("scoring")
        scores = score_maps(path, measured_on(test_windows, folder / "test"), facts, header, watch)
    return SearchResult(
        request=request,
        text=text,
        facts=facts,
        path=scores.path,
        chosen=scores.path[-1],
        dropped=scores.dropped,
        baselines=scores.baselines,
        singles=beam_search.singles,
        cost=path[-1].cost,
        n_measured=costs.n_measured,
        n_windows=len(test_windows),
    )


def _fit_pairs(
    request: SearchRequest,
    built: runtime.RuntimeStatus,
    facts: Facts,
    trial_model: TrialModel,
    pairs: Sequence[Pair],
    windows: Windows,
    watch: Fraction,
) -> dict[Pair, PairFit]:
    header = trial_model.header
    with observing(built, header.path, facts, n_ctx=request.n_ctx, n_threads=request.n_threads) as observer:
        fitter = PairFitter(
            header,
            facts,
            trial_model,
            observer,
            windows,
            align=request.align,
            refit=request.refit,
            n_threads=request.n_threads,
        )
        return fitter.fits(pairs, watch)


def exceeds(budget: Budget, found: CostedLayers) -> bool:
    """Return whether a map costs more than the largest KL divergence that the budget allows."""
    return budget.max_kl is not None and found.cost > budget.max_kl


def is_met(budget: Budget, facts: Facts, found: CostedLayers) -> bool:
    """Return whether a map has the followers, or takes no more than the KV bytes, that the budget asks for."""
    if budget.kv_bytes is not None:
        return facts.kv_bytes_per_token(facts.of_layers(found.map)) <= budget.kv_bytes
    return budget.followers is not None and n_followers(found) >= budget.followers


def _checked_budget(request: SearchRequest, facts: Facts, pairs: Sequence[Pair]) -> Budget:
    """Return the budget, in bytes where it is a part of them. Raises BadInput where no map could meet it."""
    most = len({follower for _, follower in pairs})
    if request.budget.n_given != 1:
        raise BadInput("name one of --followers, --max-kl, --kv-bytes and --save", path=request.model)
    budget = request.budget.in_bytes(facts.kv_bytes_per_token(facts.attention))
    if not pairs:
        raise Unsupported("no two layers of it could share", path=request.model)
    if budget.followers is not None and budget.followers > most:
        raise BadInput(
            f"at most {most} layers could follow", path=request.model, field=f"--followers {budget.followers}"
        )
    least = facts.kv_bytes_per_token(facts.of_layers((0,) * facts.n_layer))
    if budget.kv_bytes is not None and budget.kv_bytes < least:
        raise BadInput(f"a token takes {least} at least", path=request.model, field=f"--kv-bytes {budget.kv_bytes}")
    return budget


def _settings(request: SearchRequest, text: Corpus, header: Header) -> dict[str, object]:
    """Return what measured costs depend on."""
    return {
        "model": tensors_blake3(header) if request.state else "",
        "unit": "layer",
        "text": text.sha256,
        "align": request.align,
        "refit": request.refit,
        "ctx": request.n_ctx,
        "windows": request.n_windows,
        "reach": request.reach,
    }


def _searched(
    beam_search: BeamSearch, request: SearchRequest, budget: Budget, facts: Facts, watch: Fraction
) -> list[CostedLayers]:
    """Return the best map for each number of followers; the last one is chosen, after exchanges."""
    most = budget.followers or facts.n_layer // 2

    def enough(step: CostedLayers) -> bool:
        watch(min(0.9, 0.9 * n_followers(step) / most))
        return exceeds(budget, step) or is_met(budget, facts, step)

    path = beam_search.guesses(enough) if request.fast else beam_search.path(enough)
    if budget.max_kl is not None:
        path = [step for step in path if not exceeds(budget, step)]
    elif not is_met(budget, facts, path[-1]):
        raise BadInput(
            f"no map with {n_followers(path[-1]) + 1} followers", path=request.model, next_step="try a larger --reach"
        )
    if not request.fast and n_followers(path[-1]):
        path[-1] = beam_search.exchanged(path[-1])
    return path
