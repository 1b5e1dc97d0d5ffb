"""From a request to a job: the model is fetched and converted if need be, and the plan is made.

with opened(request) as job:
    job.plan, job.outputs          # what will be written, to the byte
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint import hub
from ..checkpoint.checks import check_files, check_no_code, checkpoint_files
from ..errors import BadInput, BadSpans, ShareattError, Unsupported
from ..formats.gguf_header import Header
from ..formats.shards import piece_names, read_model
from ..formats.texts import Corpus, read_corpus
from ..llamacpp import runtime
from ..llamacpp.quantize import Quantisation
from ..model.attention_map import AttentionMap
from ..model.facts import Facts, read_facts
from ..model.map_text import parse_map
from ..model.spans import AUTO, extended, parse_spans
from ..plan.make_plan import make_plan
from ..plan.plan import Plan
from ..plan.projections import Fitting
from ..system.progress import Stages, Step, silent
from ..system.staging import check_output
from .auto_map import found_map
from .convert import CONVERTER_TYPES, converted
from .map_file import read_map
from .output_names import destination
from .prediction import Prediction, check_input, predict
from .request import ExportRequest


@dataclass(frozen=True)
class ExportJob:
    """An export that is ready to run."""

    request: ExportRequest
    repository: str | None  # where the model was fetched from
    inputs: tuple[Path, ...]
    plan: Plan
    quantisation: Quantisation | None
    prediction: Prediction | None  # of the quantisation
    sizes: tuple[int, ...]  # bytes of the files that it will write
    text: Corpus | None  # to fit with
    stages: Stages

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The paths of those files. Raises ValueError without `request.out`."""
        if self.request.out_path is None:
            raise ValueError("a plan alone has no outputs")
        encoding = self.quantisation.type if self.quantisation else None
        path = destination(self.plan, self.request.out_path, self.request.out_folder, encoding)
        return piece_names(path, len(self.sizes))


@contextmanager
def opened(request: ExportRequest, step: Step = silent) -> Iterator[ExportJob]:
    """Yield the job of a request; a checkpoint's dense GGUF exists within the block only. Raises ShareattError."""
    model, repository = Path(request.model), None
    if not model.exists() and (repository := hub.repository(str(request.model))):
        step(f"fetching {repository}", None)
        model = hub.fetch(repository, request.revision, request.trust_remote_code)
    if not model.exists():
        raise BadInput("no such file or folder", path=model)
    _check_options(request)
    if model.is_dir():
        yield from _of_checkpoint(model, repository, request, step)
        return
    _check_out(request, [model])
    quantisation = _quantisation(request) if request.outtype != "AUTO" else None
    stages = _stages(step, request, converts=False, quantises=quantisation is not None)
    header = read_model(model)
    yield _job(header, header.files, None, request, quantisation, stages)


def _check_options(request: ExportRequest) -> None:
    if request.imatrix is not None and not Path(request.imatrix).is_file():
        raise BadInput("no such file", path=request.imatrix)
    if request.text:
        read_corpus(request.text)
    if (request.map is not None) == (request.spans is not None or request.drop is not None):
        raise BadSpans("name --spans or --drop or both, or --map alone")
    searches = request.spans == AUTO
    if searches and (request.drop is not None or request.source != "first"):
        raise BadSpans("--spans auto finds the whole map, and goes without --drop and --source")
    if request.budget.n_given != int(searches) or (request.fast and not searches):
        raise BadSpans(
            "--spans auto and one of --save, --kv-bytes, --max-kl, --followers belong together, --fast only with them"
        )
    if request.align or request.refit or searches:
        runtime.require()  # before anything that takes long


def _of_checkpoint(model: Path, repository: str | None, request: ExportRequest, step: Step) -> Iterator[ExportJob]:
    inputs = checkpoint_files(model)
    _check_out(request, inputs)
    n_layer = check_files(model)
    if not request.trust_remote_code:
        check_no_code(model)
    if request.spans == AUTO and request.out is None:
        raise BadInput(
            "a dry run of a checkpoint reads no weights", path=model, field="--spans auto",
            next_step="convert it to GGUF first",
        )  # fmt: skip
    if n_layer is not None and request.spans not in (AUTO, None) and "." not in request.spans:
        parse_spans(request.spans, n_layer, request.source)  # before minutes of conversion
    converter_type = request.outtype if request.outtype in CONVERTER_TYPES else "AUTO"
    quantisation = _quantisation(request) if request.outtype != converter_type else None
    stages = _stages(step, request, converts=True, quantises=quantisation is not None)
    near = request.out_folder or (request.out_path.parent if request.out_path else None)
    if near is not None:  # the folder may be one that is still to be made
        near = next(folder for folder in (near, *near.absolute().parents) if folder.is_dir())
    watch = stages("converting")
    with converted(model, near, converter_type.lower(), request.llama_cpp, request.verbose, watch) as dense:
        try:
            job = _job(read_model(dense), tuple(inputs), repository, request, quantisation, stages)
        except ShareattError as error:
            raise error.moved(dense, model) from None
        yield job


def _check_out(request: ExportRequest, inputs: list[Path]) -> None:
    """Refuse a bad output before anything that takes long, if its name is known already."""
    if request.out_path and not request.out_folder and request.split_max_size is None:
        check_output(request.out_path, inputs, request.force)


def _quantisation(request: ExportRequest) -> Quantisation:
    runtime.require()  # before anything that takes long
    return Quantisation(request.outtype, request.imatrix, request.threads)


def _stages(step: Step, request: ExportRequest, *, converts: bool, quantises: bool) -> Stages:
    """The shares are rough times, relative to that of writing."""
    fits, splits = request.align or request.refit, request.split_max_size is not None
    shares = {
        "converting": 6.0 * converts,
        "searching": 400 * (request.spans == AUTO),
        "fitting": 100 * fits,
        "writing": 1,
        "quantising": 20 * quantises,
        "splitting": 1.5 * (splits and quantises),
    }
    return Stages(step, shares)


def _job(
    header: Header,
    inputs: tuple[Path, ...],
    repository: str | None,
    request: ExportRequest,
    quantisation: Quantisation | None,
    stages: Stages,
) -> ExportJob:
    facts = read_facts(header)
    fits = request.align or request.refit
    text = read_corpus(request.text) if fits or request.spans == AUTO else None
    fitting = Fitting(request.align, request.refit, text.sha256) if text and fits else None
    if request.spans == AUTO and text:
        attention = found_map(header, facts, request, text, stages("searching"))
    else:
        attention = wanted(header, facts, request)
    plan = make_plan(header, facts, attention, fitting)
    prediction = None
    if quantisation is not None:
        check_input(header)
        prediction = predict(plan, quantisation)
    pieces = prediction.pieces(request.split_max_size) if prediction else plan.pieces(request.split_max_size)
    sizes = tuple(piece.file_size for piece in pieces)
    job = ExportJob(request, repository, inputs, plan, quantisation, prediction, sizes, text, stages)
    if request.out_path is not None:
        _check_outputs(job, inputs)
    return job


def wanted(header: Header, facts: Facts, request: ExportRequest) -> AttentionMap:
    """Return the map that a request asks for.

    Raises BadSpans if it cannot be read or does not fit the model, Unsupported if the model shares single KV groups.
    """
    if (before := facts.attention.source_layers) is None:
        next_step = "begin with the dense model"
        raise Unsupported("shares single KV groups already", path=header.path, next_step=next_step)
    if request.map is not None:
        return read_map(request.map, facts.dense_attention)
    if request.drop is None and request.spans is not None and "." not in request.spans:
        spans = parse_spans(request.spans, facts.n_layer, request.source, facts.is_swa)
        return facts.of_layers(extended(before, spans))
    return parse_map(request.spans, request.drop, facts.dense_attention, request.source, facts.is_swa)


def _check_outputs(job: ExportJob, inputs: Sequence[Path]) -> None:
    """A folder that is still to be made has no files to overwrite."""
    folder = job.request.out_folder
    for path in job.outputs if folder is None or folder.is_dir() else ():
        check_output(path, inputs, job.request.force)
