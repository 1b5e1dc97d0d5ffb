"""One export from end to end: model -> dense GGUF -> plan -> SA file -> other weight types -> shards -> their names.

with opened(request) as job:       # fetched and converted if need be
    job.plan, job.outputs          # what will be written, to the byte
    done = export(job)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import hub, quantize, runtime
from .convert import OUTTYPES, check_checkpoint, checkpoint_files, converted
from .errors import BadInput, ShareattError, VerifyFailed
from .facts import read_facts
from .files import Writeback, check_output, check_space, publish, staged
from .header import Header, read_header
from .names import destination
from .plan import Plan, copies, make_plan
from .progress import Stages, Step, counted, silent
from .quantize import Prediction, Quantisation
from .shards import piece_names, pieces, read_model
from .spans import SourceMode, parse_spans
from .verify import Verified, hold_against, same_inventory
from .write import Written, unchanged, write_pieces, write_plan


@dataclass(frozen=True)
class Request:
    """What the user asks for, as the options of `shareatt-export export` say it."""

    model: Path | str  # a Hugging Face folder, a GGUF file (the first shard), or the id of a model on the hub
    spans: str
    out: Path | None  # not needed for a plan alone; a folder gets a file named by the plan
    source: SourceMode = "first"
    outtype: str = "AUTO"
    imatrix: Path | None = None
    threads: int | None = None
    split_max_size: int | None = None  # bytes of tensors in one file
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
class Job:
    """An export that is ready to run."""

    request: Request
    repository: str | None  # where the model was fetched from
    inputs: tuple[Path, ...]
    plan: Plan
    quantisation: Quantisation | None
    prediction: Prediction | None  # of the quantisation
    sizes: tuple[int, ...]  # bytes of the files that it will write
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
    job: Job
    files: tuple[Path, ...]
    source_sha256: str
    n_bytes: int  # copied and compared, byte by byte


@contextmanager
def opened(request: Request, step: Step = silent) -> Iterator[Job]:
    """The job of a request; a checkpoint's dense GGUF is there for the length of the block. Raises ShareattError."""
    model, repo = Path(request.model), None
    if not model.exists() and (repo := hub.repository(str(request.model))):
        step(f"fetching {repo}", None)
        model = hub.fetch(repo, request.revision, request.trust_remote_code)
    if not model.exists():
        raise BadInput(f"{model}: no such file or folder")
    if request.imatrix is not None and not request.imatrix.is_file():
        raise BadInput(f"{request.imatrix}: no such file")
    if model.is_dir():
        yield from _of_checkpoint(model, repo, request, step)
        return
    _check_out(request, [model])
    how = _quantisation(request) if request.outtype != "AUTO" else None
    stages = _stages(step, converts=False, quantises=how is not None, splits=request.split_max_size is not None)
    header = read_model(model)
    yield _job(header, header.files, None, request, how, stages)


def _of_checkpoint(model: Path, repo: str | None, request: Request, step: Step) -> Iterator[Job]:
    inputs = checkpoint_files(model)
    _check_out(request, inputs)
    n_layer = check_checkpoint(model, request.trust_remote_code)
    if n_layer is not None:
        parse_spans(request.spans, n_layer, request.source)  # before minutes of conversion
    how = _quantisation(request) if request.outtype != request.converts_to else None
    stages = _stages(step, converts=True, quantises=how is not None, splits=request.split_max_size is not None)
    near = None if request.out is None else request.out if request.out.is_dir() else request.out.parent
    outtype = request.converts_to.lower()
    with converted(model, near, outtype, request.llama_cpp, request.verbose, stages("converting")) as dense:
        try:
            job = _job(read_model(dense), tuple(inputs), repo, request, how, stages)
        except ShareattError as error:
            raise type(error)(str(error).replace(str(dense), str(model))) from None
        yield job


def _check_out(request: Request, inputs: list[Path]) -> None:
    if request.out is not None and not request.out.is_dir() and request.split_max_size is None:
        check_output(request.out, inputs, request.force)


def _quantisation(request: Request) -> Quantisation:
    runtime.require()  # before anything that takes long
    return Quantisation(request.outtype, request.imatrix, request.threads)


def _stages(step: Step, converts: bool, quantises: bool, splits: bool) -> Stages:
    """Shares are times beside that of writing, roughly."""
    shares = {"converting": 6.0 * converts, "writing": 1, "quantising": 20 * quantises}
    return Stages(step, shares | {"splitting": 1.5 * (splits and quantises)})


def _job(
    header: Header,
    inputs: tuple[Path, ...],
    repo: str | None,
    request: Request,
    how: Quantisation | None,
    stages: Stages,
) -> Job:
    facts = read_facts(header)
    plan = make_plan(header, facts, parse_spans(request.spans, facts.n_layer, request.source, facts.is_swa))
    prediction = None
    if how is not None:
        quantize.check_input(header)
        prediction = quantize.predict(plan, how)
    planned = prediction.pieces(request.split_max_size) if prediction else plan.pieces(request.split_max_size)
    job = Job(request, repo, inputs, plan, how, prediction, tuple(piece.file_size for piece in planned), stages)
    if request.out is not None:
        for path in job.outputs:
            check_output(path, inputs, request.force)
    return job


def export(job: Job) -> Exported:
    """Write and verify in a hidden folder, and only then give the files their names."""
    outputs = job.outputs
    with staged(outputs[0]) as folder, Writeback() as writeback:
        check_space(outputs[0], sum(job.sizes) + (job.plan.weight_bytes_after if job.quantisation else 0))
        files = [folder / path.name for path in outputs]
        try:
            with unchanged(job.plan.dense.files):
                if job.prediction:
                    verified = _write_quantised(job, folder, files)
                else:
                    verified = _write_sa(job, files, writeback.begin)
                writeback.finish()
        except VerifyFailed as error:
            told = str(error).replace(str(folder), str(outputs[0].parent))
            raise VerifyFailed(f"{told}; nothing was written") from None
        publish(dict(zip(files, outputs, strict=True)), job.inputs, job.request.force)
    return Exported(job, outputs, verified.source_sha256, verified.n_bytes)


def _write_sa(job: Job, files: list[Path], written: Written = lambda path: None) -> Verified:
    """The plan's file, or its shards."""
    max_bytes = job.request.split_max_size if len(files) > 1 else None
    advance = counted(job.stages("writing"), job.plan.weight_bytes_before)
    plan = write_plan(job.plan, files, max_bytes, advance, written, not job.request.allow_nonfinite)
    return hold_against(read_model(files[0]), plan)


def _write_quantised(job: Job, folder: Path, files: list[Path]) -> Verified:
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
    tensors = copies(header)
    advance = counted(job.stages("splitting"), sum(copy.n_bytes for copy in tensors))
    shards = pieces(header.version, header.metadata, tensors, header.alignment, job.request.split_max_size)
    write_pieces(shards, files, advance)
    return verified
