"""The tool as a library: what `import shareatt_export` offers. Every error is a ShareattError.

Each function takes a request object, or the fields of one:

    export(ExportRequest("model.gguf", spans="auto", followers=4, out="out.gguf"), progress=print)
    export("model.gguf", spans="auto", followers=4, out="out.gguf")
"""

from collections.abc import Callable
from dataclasses import replace
from functools import update_wrapper
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from .benchmark.request import BenchRequest
from .errors import ShareattError
from .evaluation.request import AnalyzeRequest, EvaluateRequest
from .exporting.request import ExportRequest
from .healing.request import HealRequest
from .searching.request import GroupSearchRequest, SearchRequest
from .system.progress import Step, silent

if TYPE_CHECKING:
    from .benchmark.measure import Measured
    from .evaluation.analyze import Analysis
    from .evaluation.evaluate import Evaluation
    from .exporting.pipeline import Exported
    from .healing.heal import Healed
    from .searching.search import SearchResult
    from .searching.search_groups import GroupSearchResult

__all__ = [
    "AnalyzeRequest",
    "BenchRequest",
    "EvaluateRequest",
    "ExportRequest",
    "GroupSearchRequest",
    "HealRequest",
    "SearchRequest",
    "ShareattError",
    "analyze",
    "bench",
    "evaluate",
    "export",
    "heal",
    "search",
    "search_groups",
]

Fields = ParamSpec("Fields")
Request = TypeVar("Request")
Result = TypeVar("Result")


class RequestFunction(Generic[Fields, Request, Result]):
    """A function that is called with a request, or with the fields of one, which have their types.

    `progress` is told what is being done, and the fraction of it that is done (None if that is not known).
    """

    def __init__(self, request_type: Callable[Fields, Request], run: Callable[[Request, Step], Result]) -> None:
        self._request_type, self._run = request_type, run
        update_wrapper(self, run)
        self.__signature__ = signature(request_type)

    @overload
    def __call__(self, request: Request, /, *, progress: Step = silent) -> Result: ...

    @overload
    def __call__(self, *fields: Fields.args, **named: Fields.kwargs) -> Result: ...

    def __call__(self, *fields: Any, **named: Any) -> Result:
        progress = named.pop("progress", silent)
        if len(fields) == 1 and isinstance(fields[0], self._request_type):  # type: ignore[arg-type]  # it is a class
            return self._run(fields[0], progress)
        return self._run(self._request_type(*fields, **named), progress)


def _function(
    request_type: Callable[Fields, Request],
) -> Callable[[Callable[[Request, Step], Result]], RequestFunction[Fields, Request, Result]]:
    return lambda run: RequestFunction(request_type, run)


@_function(ExportRequest)
def export(request: ExportRequest, progress: Step) -> "Exported":
    """Make an SA GGUF: whole and verified, or not at all.

    Raises BadInput for a model or text that is missing or damaged, BadSpans for spans that do not fit the model,
    Unsupported for models that cannot share, OutputRefused where the output exists or cannot be written,
    ConversionFailed for a checkpoint that llama.cpp's converter refuses, RuntimeProblem where the runtime is needed and
    missing, and VerifyFailed where a written file differs from its plan. Each of them is a ShareattError.
    """
    from .exporting.job import opened
    from .exporting.pipeline import export

    with opened(request, progress) as job:
        return export(job)


@_function(SearchRequest)
def search(request: SearchRequest, progress: Step) -> "SearchResult":
    """Find the spans that cost least, measured by KL divergence from the dense model.

    Raises BadInput where the budget cannot be met or the text is too short, Unsupported for models that cannot share,
    and RuntimeProblem where the runtime is missing. Each of them is a ShareattError.
    """
    from .exporting.convert import as_gguf
    from .searching.search import search

    with as_gguf(Path(request.model), progress) as gguf:
        return replace(search(replace(request, model=gguf), progress), request=request)


@_function(GroupSearchRequest)
def search_groups(request: GroupSearchRequest, progress: Step) -> "GroupSearchResult":
    """Find which KV groups should follow and which should be dropped, measured as search() does.

    Raises what search() raises, and Unsupported for architectures that share whole layers only. Each is a
    ShareattError.
    """
    from .exporting.convert import as_gguf
    from .searching.search_groups import search_groups

    with as_gguf(Path(request.model), progress) as gguf:
        return replace(search_groups(replace(request, model=gguf), progress), request=request)


@_function(AnalyzeRequest)
def analyze(request: AnalyzeRequest, progress: Step) -> "Analysis":
    """Measure which layers attend alike, and what sharing or dropping attention changes in each.

    Raises BadInput where the text is too short, Unsupported for encoders and SA models, and RuntimeProblem where the
    runtime is missing or does not show the attention of the architecture. Each of them is a ShareattError.
    """
    from .evaluation.analyze import analyze
    from .exporting.convert import as_gguf

    with as_gguf(Path(request.model), progress) as gguf:
        return replace(analyze(replace(request, model=gguf), progress), request=request)


@_function(EvaluateRequest)
def evaluate(request: EvaluateRequest, progress: Step) -> "Evaluation":
    """Measure what SA models lose: perplexity, KL divergence, agreement, tasks.

    Raises BadInput where the models have different vocabularies, the text is shorter than a window, or a task file does
    not fit, and RuntimeProblem where the runtime is missing. Each of them is a ShareattError.
    """
    from .evaluation.evaluate import evaluate
    from .exporting.convert import as_gguf

    with as_gguf(Path(request.dense), progress) as gguf:
        done = evaluate(replace(request, dense=gguf), progress)
        dense = [score.subject.model == gguf for score in done.scores]
    return replace(
        done,
        request=request,
        scores=tuple(
            replace(score, subject=replace(score.subject, model=Path(request.dense))) if is_dense else score
            for score, is_dense in zip(done.scores, dense, strict=True)
        ),
    )


@_function(HealRequest)
def heal(request: HealRequest, progress: Step) -> "Healed":
    """Train a GGUF or a Hugging Face model to win back what sharing attention costs it. Needs the extra `hf` (torch).

    Raises ValueError without `out`, BadInput for a model or text that does not fit, BadSpans for spans that do not fit
    the model, Unsupported for models that cannot be healed, and OutputRefused where the output exists. Apart from the
    first, each of them is a ShareattError.
    """
    from .exporting.convert import require_hf

    require_hf()
    from .healing.heal import heal
    from .healing.job import planned

    return heal(planned(request), progress)


@_function(BenchRequest)
def bench(request: BenchRequest, progress: Step) -> "Measured":
    """Measure speed and memory of an SA model beside its dense model.

    Raises BadInput where the files do not belong together, and RuntimeProblem where the runtime or the unpatched
    library is missing or cannot run them. Each of them is a ShareattError.
    """
    from .benchmark.measure import measure

    return measure(request, progress)
