"""One export from end to end: model -> dense GGUF -> plan -> SA file -> other weight types -> shards -> their names.

with opened(request) as job:       # fetched and converted if need be
    job.plan, job.outputs          # what will be written, to the byte
    done = export(job)
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint import hub
from ..checkpoint.checks import check_checkpoint, checkpoint_files
from ..errors import BadInput, BadSpans, ShareattError, VerifyFailed
from ..formats.gguf_header import Header, read_header
from ..formats.shards import piece_names, pieces, read_model
from ..formats.tensor_copies import whole_copies
from ..formats.transfer import TensorWritten
from ..llamacpp import runtime
from ..llamacpp.texts import Text, read_text
from ..model.facts import read_facts
from ..model.spans import AUTO, SourceMode, parse_spans
from ..plan.make_plan import make_plan
from ..plan.plan import Plan
from ..plan.projections import Fitting
from ..searching.beam import Budget
from ..system.progress import Stages, Step, counted, silent
from ..system.staging import check_output, check_space, publish, staged
from ..system.streams import Writeback
from . import quantize
from .convert import OUTTYPES, converted
from .output_names import destination
from .quantize import Prediction, Quantisation
from .verify import Verified, hold_against, same_inventory
from .write import unchanged, write_pieces, write_plan

if TYPE_CHECKING:
    from ..fitting.fit import FittedFollower


@dataclass(frozen=True)
class ExportRequest:
    """What the user asks for, as the options of `shareatt-export export` say it."""

    model: Path | str  # a Hugging Face folder, a GGUF file (the first shard), or the id of a model on the hub
    spans: str
    out: Path | None  # not needed for a plan alone; a folder gets a file named by the plan
    source: SourceMode = "first"
    outtype: str = "AUTO"
    imatrix: Path | None = None
    threads: int | None = None
    split_max_size: int | None = None  # bytes of tensors in one file
    align: bool = False
    refit: bool = False
    text: Path | None = None  # to align, refit and search with
    budget: Budget | None = None  # for spans "auto"
    fast: bool = False
    force: bool = False
    llama_cpp: Path | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    verbose: bool = False
    allow_nonfinite: bool = False  # weights that are NaN or infinite

    @property
    def converts_to(self) -> str:
        """The type that the converter writes; others are quantised from what the checkpoint has."""
        return self.outtype if self.outtype in OUTTYPES else "AUTO"


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
    text: Text | None  # to fit with
    stages: Stages

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The names of those files; Request.out must be there."""
        if self.request.out is None:
            raise ValueError("a plan alone has no outputs")
        encoding = self.quantisation.type if self.quantisation else None
        return piece_names(destination(self.plan, self.request.out, encoding), len(self.sizes))


@dataclass(frozen=True)
class Exported:
    job: ExportJob
    files: tuple[Path, ...]
    source_sha256: str
    n_bytes: int  # copied and compared, byte by byte
    followers: "tuple[FittedFollower, ...]" = ()  # what was fitted


@contextmanager
def opened(request: ExportRequest, step: Step = silent) -> Iterator[ExportJob]:
    """The job of a request; a checkpoint's dense GGUF is there for the length of the block. Raises ShareattError."""
    model, repo = Path(request.model), None
    if not model.exists() and (repo := hub.repository(str(request.model))):
        step(f"fetching {repo}", None)
        model = hub.fetch(repo, request.revision, request.trust_remote_code)
    if not model.exists():
        raise BadInput(f"{model}: no such file or folder")
    for path in filter(None, (request.imatrix, request.text)):
        if not path.is_file():
            raise BadInput(f"{path}: no such file")
    if (request.spans == AUTO) != (request.budget is not None) or (request.fast and request.spans != AUTO):
        raise BadSpans(
            "--spans auto and one of --followers, --max-kl, --kv-bytes belong together, --fast only with them"
        )
    if request.align or request.refit or request.spans == AUTO:
        runtime.require()  # before anything that takes long
    if model.is_dir():
        yield from _of_checkpoint(model, repo, request, step)
        return
    _check_out(request, [model])
    how = _quantisation(request) if request.outtype != "AUTO" else None
    stages = _stages(step, request, converts=False, quantises=how is not None)
    header = read_model(model)
    yield _job(header, header.files, None, request, how, stages)


def _of_checkpoint(model: Path, repo: str | None, request: ExportRequest, step: Step) -> Iterator[ExportJob]:
    inputs = checkpoint_files(model)
    _check_out(request, inputs)
    n_layer = check_checkpoint(model, request.trust_remote_code)
    if request.spans == AUTO and request.out is None:
        raise BadInput(f"{model}: --spans auto: a dry run of a checkpoint reads no weights; convert it to GGUF first")
    if n_layer is not None and request.spans != AUTO:
        parse_spans(request.spans, n_layer, request.source)  # before minutes of conversion
    how = _quantisation(request) if request.outtype != request.converts_to else None
    stages = _stages(step, request, converts=True, quantises=how is not None)
    near = None if request.out is None else request.out if request.out.is_dir() else request.out.parent
    outtype = request.converts_to.lower()
    with converted(model, near, outtype, request.llama_cpp, request.verbose, stages("converting")) as dense:
        try:
            job = _job(read_model(dense), tuple(inputs), repo, request, how, stages)
        except ShareattError as error:
            raise type(error)(str(error).replace(str(dense), str(model))) from None
        yield job


def _check_out(request: ExportRequest, inputs: list[Path]) -> None:
    if request.out is not None and not request.out.is_dir() and request.split_max_size is None:
        check_output(request.out, inputs, request.force)


def _quantisation(request: ExportRequest) -> Quantisation:
    runtime.require()  # before anything that takes long
    return Quantisation(request.outtype, request.imatrix, request.threads)


def _stages(step: Step, request: ExportRequest, converts: bool, quantises: bool) -> Stages:
    """Shares are times beside that of writing, roughly."""
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
    repo: str | None,
    request: ExportRequest,
    how: Quantisation | None,
    stages: Stages,
) -> ExportJob:
    facts = read_facts(header)
    text = read_text(request.text) if request.align or request.refit or request.spans == AUTO else None
    fitting = Fitting(request.align, request.refit, text.sha256) if text and (request.align or request.refit) else None
    spans = _search(header, request, text, stages) if text and request.spans == AUTO else request.spans
    plan = make_plan(header, facts, parse_spans(spans, facts.n_layer, request.source, facts.is_swa), fitting)
    prediction = None
    if how is not None:
        quantize.check_input(header)
        prediction = quantize.predict(plan, how)
    planned = prediction.pieces(request.split_max_size) if prediction else plan.pieces(request.split_max_size)
    job = ExportJob(
        request, repo, inputs, plan, how, prediction, tuple(piece.file_size for piece in planned), text, stages
    )
    if request.out is not None:
        for path in job.outputs:
            check_output(path, inputs, request.force)
    return job


def _search(header: Header, request: ExportRequest, text: Text, stages: Stages) -> str:
    from ..searching import search as finder  # it takes a while to import

    assert request.budget is not None  # noqa: S101  (opened() has looked)
    watch = stages("searching")
    ask = finder.SearchRequest(
        header.path,
        text,
        request.budget,
        request.align,
        request.refit,
        fast=request.fast,
        n_threads=request.threads or os.cpu_count() or 2,
    )
    return finder.search(ask, lambda what, fraction: watch(fraction or 0.0)).spans_text


def export(job: ExportJob) -> Exported:
    """Write and verify in a hidden folder, and only then give the files their names."""
    outputs = job.outputs
    with staged(outputs[0]) as folder, Writeback() as writeback:
        check_space(outputs[0], sum(job.sizes) + (job.plan.weight_bytes_after if job.quantisation else 0))
        files = [folder / path.name for path in outputs]
        try:
            with unchanged(job.plan.dense.files):
                job, followers = _fitted(job, folder / ".fitted")
                if job.prediction:
                    verified = _write_quantised(job, folder, files)
                else:
                    verified = _write_sa(job, files, writeback.begin)
                writeback.finish()
        except VerifyFailed as error:
            told = str(error).replace(str(folder), str(outputs[0].parent))
            raise VerifyFailed(f"{told}; nothing was written") from None
        publish(dict(zip(files, outputs, strict=True)), job.inputs, job.request.force)
    return Exported(job, outputs, verified.source_sha256, verified.n_bytes, followers)


def _fitted(job: ExportJob, store: Path) -> "tuple[ExportJob, tuple[FittedFollower, ...]]":
    """The job with the weights that its plan asks for, which stand in `store`."""
    if job.plan.fitting is None or job.text is None:
        return job, ()
    from ..fitting import fit  # it takes a while to import

    watch = job.stages("fitting")
    request = fit.FitRequest(job.plan.fitting, job.text, n_threads=job.request.threads or os.cpu_count() or 2)
    done = fit.fit(job.plan, request, runtime.require(), watch)
    return replace(job, plan=fit.store(job.plan, done, store)), done.followers


def _write_sa(job: ExportJob, files: list[Path], written: TensorWritten = lambda path: None) -> Verified:
    """The plan's file, or its shards."""
    max_bytes = job.request.split_max_size if len(files) > 1 else None
    advance = counted(job.stages("writing"), job.plan.weight_bytes_before)
    plan = write_plan(job.plan, files, max_bytes, advance, written, not job.request.allow_nonfinite)
    return hold_against(read_model(files[0]), plan)


def _write_quantised(job: ExportJob, folder: Path, files: list[Path]) -> Verified:
    """The plan's file, quantised; split after that, as only then its sizes are real."""
    assert job.quantisation is not None and job.prediction is not None  # noqa: S101  (export() has looked)
    sa, quantised = folder / ".sa", folder / ".quantised"
    verified = _write_sa(job, [sa])
    quantize.quantize(sa, quantised, job.quantisation, job.stages("quantising"))
    sa.unlink()
    header = read_header(quantised)
    same_inventory(header, job.prediction.tensors)
    if header.metadata.keys() != job.prediction.metadata.keys():
        raise VerifyFailed(f"{quantised}: llama-quantize changed the metadata otherwise than it should")
    if read_facts(header).source_layers != job.plan.source_layers:
        raise VerifyFailed(f"{quantised}: llama-quantize did not keep the source map")
    if len(files) == 1:
        quantised.rename(files[0])
        return verified
    tensors = whole_copies(header)
    advance = counted(job.stages("splitting"), sum(copy.n_bytes for copy in tensors))
    shards = pieces(header.version, header.metadata, tensors, header.alignment, job.request.split_max_size)
    write_pieces(shards, files, advance)
    return verified
