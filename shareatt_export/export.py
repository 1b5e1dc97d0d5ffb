"""One export from end to end: dense GGUF (made from a checkpoint if need be) -> plan -> file -> verification."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .convert import check_checkpoint, checkpoint_files, converted
from .errors import BadInput, ShareattError, Unsupported, VerifyFailed
from .facts import read_facts
from .files import Advance, check_output, nothing
from .header import read_header
from .plan import Plan, make_plan
from .spans import SourceMode, parse_spans
from .verify import Verified, verify
from .write import write_plan


@dataclass(frozen=True)
class Request:
    """What the user asks for, as the options of `shareatt-export export` say it."""

    model: Path
    spans: str
    out: Path | None  # not needed for a plan alone; a folder gets a file named by the plan
    source: SourceMode = "first"
    outtype: str = "auto"
    force: bool = False
    llama_cpp: Path | None = None
    trust_remote_code: bool = False
    verbose: bool = False


@contextmanager
def planned(request: Request) -> Iterator[Plan]:
    """The plan of an export; a checkpoint's dense GGUF is there for the length of the block."""
    model = request.model
    if not model.exists():
        raise BadInput(f"{model}: no such file or folder")
    if request.out is not None and not request.out.is_dir():
        inputs = checkpoint_files(model) if model.is_dir() else [model]
        check_output(request.out, inputs, request.force)
    if not model.is_dir():
        if request.outtype != "auto":
            raise Unsupported(f"{model}: --outtype is for Hugging Face folders; use llama-quantize on a GGUF")
        yield _plan(model, request)
        return
    n_layer = check_checkpoint(model, request.trust_remote_code)
    if n_layer is not None:
        parse_spans(request.spans, n_layer, request.source)  # before minutes of conversion
    near = _folder(request.out) if request.out is not None else None
    with converted(model, near, request.outtype, request.llama_cpp, request.verbose) as dense:
        try:
            plan = _plan(dense, request)
        except ShareattError as error:
            raise type(error)(str(error).replace(str(dense), str(model))) from None
        yield plan


def _folder(out: Path) -> Path:
    return out if out.is_dir() else out.parent


def _plan(dense: Path, request: Request) -> Plan:
    header = read_header(dense)
    facts = read_facts(header)
    return make_plan(header, facts, parse_spans(request.spans, facts.n_layer, request.source, facts.is_swa))


def export(plan: Plan, out: Path, force: bool, watch: Callable[[str, int], Advance] = lambda *_: nothing) -> Verified:
    """Write, verify, and only then give the file its name; `watch(what, n_bytes)` makes an Advance for each step."""
    n_bytes = plan.weight_bytes_before + plan.weight_bytes_after
    verified: list[Verified] = []

    def check(written: Path) -> None:
        try:
            verified.append(verify(written, plan.dense.path, watch("verifying", n_bytes)))
        except VerifyFailed as error:
            raise VerifyFailed(f"{str(error).replace(str(written), str(out))}; nothing was written") from None

    write_plan(plan, out, force, watch("writing", n_bytes), check)
    return verified[0]
