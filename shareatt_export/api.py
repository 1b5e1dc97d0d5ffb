"""The tool as a library; what `import shareatt_export` offers. Errors are of one family, ShareattError."""

from pathlib import Path

from .errors import ShareattError
from .exporting.pipeline import Exported, ExportRequest, opened
from .exporting.pipeline import export as run_job
from .formats.weight_types import weight_type
from .model.spans import SourceMode
from .system.progress import Step, silent

__all__ = ["Exported", "ShareattError", "export"]


def export(
    model: Path | str,
    spans: str,
    out: Path | str,
    *,
    source: SourceMode = "first",
    outtype: str = "auto",
    imatrix: Path | None = None,
    threads: int | None = None,
    split_max_size: int | None = None,
    align: bool = False,
    refit: bool = False,
    text: Path | None = None,
    force: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_nonfinite: bool = False,
    progress: Step = silent,
) -> Exported:
    """Make an SA GGUF, as `shareatt-export export` does: whole, verified, or not at all.

    `model` is a Hugging Face folder, a GGUF file (the first of shards) or the id of a model on the hub; `out` a file or
    a folder. `outtype` is 'auto' or a name that llama-quantize knows; `split_max_size` counts bytes of tensors;
    `text` is what `align` and `refit` fit the followers to.
    `progress` is told what is being done, and the fraction that is done. Raises ShareattError,
    or ValueError for another outtype.
    """
    request = ExportRequest(
        model=model,
        spans=spans,
        out=Path(out),
        source=source,
        outtype=weight_type(outtype),
        imatrix=imatrix,
        threads=threads,
        split_max_size=split_max_size,
        align=align,
        refit=refit,
        text=text,
        force=force,
        revision=revision,
        trust_remote_code=trust_remote_code,
        allow_nonfinite=allow_nonfinite,
    )
    with opened(request, progress) as job:
        return run_job(job)
