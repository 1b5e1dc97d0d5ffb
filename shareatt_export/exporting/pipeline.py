"""Run an export: write and verify the files in a hidden folder, and only then give them their names.

with opened(request) as job:       # job.py
    done = export(job)
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ShareattError, VerifyFailed
from ..formats.gguf_reader import read_header
from ..formats.shards import pieces, read_model
from ..formats.tensor_copies import whole_copies
from ..formats.transfer import TensorWritten
from ..llamacpp import runtime
from ..llamacpp.quantize import quantize
from ..model.facts import read_facts
from ..system.progress import counted
from ..system.staging import check_space, made_folder, publish, staged
from ..system.streams import Writeback
from .job import ExportJob
from .verify import Verified, hold_against, same_inventory
from .write import unchanged, write_pieces, write_plan

if TYPE_CHECKING:
    from ..fitting.fit import FittedFollower


@dataclass(frozen=True)
class Exported:
    """A finished export, whose files were read back and compared.

    Attributes:
        job: What was done: `job.request`, and `job.plan` with the map of the output and its sizes.
        files: The files that were written: one, or shards in their order.
        source_blake3: The identity of the dense model's tensors, 64 hexadecimal digits, which is also in the files.
        n_bytes: Number of bytes of tensors that were copied and compared.
        followers: What `align` and `refit` did to each follower.
    """

    job: ExportJob
    files: tuple[Path, ...]
    source_blake3: str
    n_bytes: int
    followers: "tuple[FittedFollower, ...]" = ()


def export(job: ExportJob) -> Exported:
    """Write the files of the job, whole and verified, or none of them. Raises ShareattError."""
    with ExitStack() as stack:
        if job.request.out_folder is not None:
            stack.enter_context(made_folder(job.request.out_folder))
        outputs = job.outputs
        folder = stack.enter_context(staged(outputs[0]))
        writeback = stack.enter_context(Writeback())
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
            raise _nothing_written(error.moved(folder, outputs[0].parent)) from None
        publish(dict(zip(files, outputs, strict=True)), job.inputs, job.request.force)
    return Exported(job, outputs, verified.source_blake3, verified.n_bytes, followers)


def _nothing_written(error: ShareattError) -> ShareattError:
    next_step = "nothing was written" if error.next_step is None else f"{error.next_step}; nothing was written"
    return VerifyFailed(error.reason, path=error.path, field=error.field, next_step=next_step)


def _fitted(job: ExportJob, store: Path) -> "tuple[ExportJob, tuple[FittedFollower, ...]]":
    """Return the job with the fitted weights that its plan asks for, which are written to the file `store`."""
    if job.plan.fitting is None or job.text is None:
        return job, ()
    from ..fitting import fit  # scipy takes a while to import

    request = fit.FitRequest(job.plan.fitting, job.text, n_threads=job.request.n_threads)
    done = fit.fit(job.plan, request, runtime.require(), job.stages("fitting"))
    return replace(job, plan=fit.store(job.plan, done, store)), done.followers


def _write_sa(job: ExportJob, files: list[Path], written: TensorWritten = lambda path: None) -> Verified:
    """Write the file of the plan, or its shards."""
    max_bytes = job.request.split_max_size if len(files) > 1 else None
    advance = counted(job.stages("writing"), job.plan.weight_bytes_before)
    plan = write_plan(job.plan, files, max_bytes, advance, written, not job.request.allow_nonfinite)
    return hold_against(read_model(files[0]), plan)


def _write_quantised(job: ExportJob, folder: Path, files: list[Path]) -> Verified:
    """Write the file of the plan, quantise it, and only then split it, as the sizes of tensors are known then."""
    assert job.quantisation is not None and job.prediction is not None  # noqa: S101  (export() has looked)
    sa, quantised = folder / ".sa", folder / ".quantised"
    verified = _write_sa(job, [sa])
    quantize(sa, quantised, job.quantisation, job.stages("quantising"))
    sa.unlink()
    header = read_header(quantised)
    same_inventory(header, job.prediction.tensors)
    if header.metadata.keys() != job.prediction.metadata.keys():
        raise VerifyFailed("llama-quantize changed the metadata otherwise than it should", path=quantised)
    if read_facts(header).attention != job.plan.attention.in_file_order():
        raise VerifyFailed("llama-quantize did not keep the source map", path=quantised)
    if len(files) == 1:
        quantised.rename(files[0])
        return verified
    tensors = whole_copies(header)
    advance = counted(job.stages("splitting"), sum(copy.n_bytes for copy in tensors))
    shards = pieces(header.version, header.metadata, tensors, header.alignment, job.request.split_max_size)
    write_pieces(shards, files, advance)
    return verified
