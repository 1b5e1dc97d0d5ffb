"""Search for spans on a real model: pairs are fitted, maps are measured by KL to the dense model, and what is found is
scored on text that took no part in it, beside what is usual and what is cheap.

The text's first half is for fitting, the third quarter for the search, the last for the scores.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from gguf import GGMLQuantizationType

from ..errors import BadInput, BadSpans, Unsupported
from ..evaluation.divergence import Quality
from ..fitting.fit import require_bare_heads
from ..fitting.observer import Observer
from ..fitting.trial_model import TrialModel
from ..formats.gguf_header import Header
from ..formats.identity import tensors_sha256
from ..formats.shards import read_model
from ..formats.texts import Text, read_text, spread
from ..llamacpp import runtime
from ..llamacpp.token_windows import token_windows
from ..model.candidate_pairs import Pair, candidates
from ..model.facts import F16, Facts, read_facts, require_exportable
from ..model.spans import SourceMap, parse_spans, source_map, spans_of
from ..plan.projections import projections
from ..system.progress import Stages, Step, silent
from .beam import CostedMap, Search, Settings
from .cost_cache import CostCache
from .map_cost import MapCosts
from .pair_fits import Fitter, Tokens
from .request import Budget, SearchRequest

Q8_0, Q4_0 = GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0
N_ALIGN = 8  # windows


@dataclass(frozen=True)
class ScoredMap:
    name: str
    source_layers: SourceMap
    kv_bytes_per_token: int
    quality: Quality


@dataclass(frozen=True)
class SearchResult:
    request: SearchRequest
    text: Text
    path: tuple[ScoredMap, ...]  # the best for each number of followers, none first
    chosen: ScoredMap
    dropped: ScoredMap | None  # no attention at all in the layers that follow
    baselines: tuple[ScoredMap, ...]
    singles: Mapping[int, float]  # cost of each follower alone
    cost: float  # of the chosen map, on the search's part of the text
    n_measured: int

    @property
    def spans_text(self) -> str:
        return ",".join(map(str, spans_of(self.chosen.source_layers)))

    @property
    def dropping_is_as_good(self) -> bool:
        return self.dropped is not None and self.dropped.quality.kl.value <= self.chosen.quality.kl.value


def search(request: SearchRequest, step: Step = silent) -> SearchResult:
    """Raises BadInput where the budget or the text is too small, Unsupported where the model cannot share."""
    header = read_model(Path(request.model))
    facts, text = read_facts(header), read_text(request.text)
    if not require_exportable(header).causal or facts.is_shared:
        raise Unsupported(f"{request.model}: a dense language model is needed to search on")
    pairs = candidates(facts, request.reach)
    _check_budget(request, facts, pairs)
    built = runtime.require()
    stages = Stages(step, {"fitting pairs": 2 * (request.align or request.refit) + 0.1, "searching": 5, "scoring": 1})
    with ExitStack() as stack:
        trial = stack.enter_context(TrialModel(built, header))
        if request.align or request.refit:
            require_bare_heads(
                trial, {layer for pair in pairs for layer in pair}, "a search; add --no-align --no-refit"
            )
        fit_windows, search_windows, test_windows = _split(trial, request, text)
        with Observer(built, header.path, facts, request.n_ctx, request.n_threads) as observer:
            fitter = Fitter(header, facts, trial, observer, Tokens(fit_windows, N_ALIGN))
            fits = fitter.fits(pairs, request.align, request.refit, stages("fitting pairs"))
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="shareatt-")))
        meter = MapCosts(trial, fits, search_windows, folder / "search", request.n_ctx, request.n_threads)
        cost = CostCache(request.state, _settings(request, text, header), meter.cost)
        errors = {pair: fit.error for pair, fit in fits.items()}
        beam = Search(facts.n_layer, errors, cost, Settings(beam=request.beam))
        found, chosen = _search(beam, request, facts, stages)
        meter = MapCosts(trial, fits, test_windows, folder / "test", request.n_ctx, request.n_threads)
        return _scored(found, chosen, beam, cost, meter, facts, header, request, text, stages)


def met(budget: Budget, facts: Facts, found: CostedMap) -> bool:
    """Return whether a map meets the budget; with `max_kl`, whether it exceeds it."""
    if budget.max_kl is not None:
        return found.cost > budget.max_kl
    if budget.kv_bytes is not None:
        return facts.kv_bytes_per_token(found.source_layers) <= budget.kv_bytes
    return budget.followers is not None and found.n_followers >= budget.followers


def _check_budget(request: SearchRequest, facts: Facts, pairs: Sequence[Pair]) -> None:
    budget, most = request.budget, len({follower for _, follower in pairs})
    if budget.n_given != 1:
        raise BadInput(f"{request.model}: name one of --followers, --max-kl and --kv-bytes")
    if not pairs:
        raise Unsupported(f"{request.model}: no two layers of it could share")
    if budget.followers is not None and budget.followers > most:
        raise BadInput(f"{request.model}: --followers {budget.followers}: at most {most} layers could follow")
    least = facts.kv_bytes_per_token((0,) * facts.n_layer)
    if budget.kv_bytes is not None and budget.kv_bytes < least:
        raise BadInput(f"{request.model}: --kv-bytes {budget.kv_bytes}: a token takes {least} at least")


def _split(trial: TrialModel, request: SearchRequest, text: Text) -> tuple[Sequence[list[int]], ...]:
    every = token_windows(trial.model, text, request.n_ctx)
    if len(every) < 8:
        raise BadInput(f"{text.name}: {len(every)} windows of {request.n_ctx} tokens; a search needs 8")
    half, quarter = len(every) // 2, 3 * len(every) // 4
    parts = (every[:half], 2 * request.n_windows), (every[half:quarter], request.n_windows)
    return tuple(spread(part, n) for part, n in (*parts, (every[quarter:], request.n_windows)))


def _settings(request: SearchRequest, text: Text, header: Header) -> dict[str, object]:
    """What measured costs depend on."""
    return {
        "model": tensors_sha256(header) if request.state else "",
        "text": text.sha256,
        "align": request.align,
        "refit": request.refit,
        "ctx": request.n_ctx,
        "windows": request.n_windows,
        "reach": request.reach,
    }


def _search(beam: Search, request: SearchRequest, facts: Facts, stages: Stages) -> tuple[list[CostedMap], CostedMap]:
    watch = stages("searching")
    most = request.budget.followers or facts.n_layer // 2

    def enough(step: CostedMap) -> bool:
        watch(min(0.9, 0.9 * step.n_followers / most))
        return met(request.budget, facts, step)

    path = beam.guesses(enough) if request.fast else beam.path(enough)
    if request.budget.max_kl is not None:
        path = [step for step in path if not met(request.budget, facts, step)]
    elif not met(request.budget, facts, path[-1]):
        raise BadInput(f"{request.model}: no map with {path[-1].n_followers + 1} followers; try a larger --reach")
    chosen = path[-1]
    if not request.fast and chosen.n_followers:
        chosen = beam.exchanged(chosen)
    return [*path[:-1], chosen], chosen


def _scored(
    path: list[CostedMap],
    chosen: CostedMap,
    beam: Search,
    cost: CostCache,
    meter: MapCosts,
    facts: Facts,
    header: Header,
    request: SearchRequest,
    text: Text,
    stages: Stages,
) -> SearchResult:
    watch = stages("scoring")
    usual = dict(_usual(facts, chosen.n_followers))
    n_points = len(path) + len(usual) + 3
    n_done = 0

    def point(name: str, source_layers: SourceMap, type_k: GGMLQuantizationType = F16) -> ScoredMap:
        nonlocal n_done
        n_done += 1
        watch(n_done / n_points)
        kv_bytes = facts.kv_bytes_per_token(source_layers, type_k)
        return ScoredMap(name, source_layers, kv_bytes, meter.quality(source_layers, type_k))

    dense = path[0].source_layers
    points = tuple(point(_name(step.source_layers), step.source_layers) for step in path)
    baselines = [point(f"{name}: {_name(of)}", of) for name, of in usual.items()]
    for name, type_k in {"q8_0": Q8_0, "q4_0": Q4_0}.items():
        if all(facts.n_embd_k(layer) % 32 == 0 for layer in range(facts.n_layer)):
            baselines.append(point(f"dense, K cache {name}", dense, type_k))
    dropped = _dropped(chosen.source_layers, meter, facts, header) if chosen.n_followers else None
    return SearchResult(
        request, text, points, points[-1], dropped, tuple(baselines), beam.singles, chosen.cost, cost.n_measured
    )


def _dropped(source_layers: SourceMap, meter: MapCosts, facts: Facts, header: Header) -> ScoredMap:
    """Without any attention in the layers that follow: neither K nor V is kept of them."""
    dense = tuple(range(facts.n_layer))
    followers = [layer for layer in dense if source_layers[layer] != layer]
    quality = meter.quality(dense, changes=meter.zeros(projections(header, facts, layer).output for layer in followers))
    saved = sum(2 * (facts.n_embd_k(layer) + facts.n_embd_v(layer)) for layer in followers)  # f16
    return ScoredMap("no attention in these layers", dense, facts.kv_bytes_per_token(dense) - saved, quality)


def _name(source_layers: SourceMap) -> str:
    return ",".join(map(str, spans_of(source_layers))) or "dense"


def _usual(facts: Facts, n: int) -> Iterator[tuple[str, SourceMap]]:
    """As many followers as were found, in the contiguous late span of the paper (which leaves the last layer out), and
    blocks over the whole depth."""
    texts = {f"every:{size}": f"every:{size}" for size in (2, 3, 4)}
    source = facts.n_layer - facts.n_layer_nextn - 2 - n
    if n and source >= 0:
        texts = {"late span": f"{source}-{source + n}"} | texts
    for name, text in texts.items():
        try:
            found = source_map(parse_spans(text, facts.n_layer, is_swa=facts.is_swa), facts.n_layer)
        except BadSpans:  # where layers attend differently by turns, or are too few
            continue
        if all(facts.n_head[source] == facts.n_head[layer] for layer, source in enumerate(found)):
            yield name, found
