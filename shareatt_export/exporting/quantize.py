"""Other weight types for an SA file, by the runtime's llama-quantize, which keeps what makes it one.

predict() asks its dry run what it would write, so sizes and names are known before anything is computed; quantize()
does it, and the result is held against the prediction.
"""

import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ..errors import BadInput, ShareattError, Unsupported
from ..formats.gguf_encode import raw_string, raw_u32
from ..formats.gguf_header import DEFAULT_ALIGNMENT, Header, RawValue, read_header
from ..formats.shards import Piece, pieces
from ..formats.weight_types import WEIGHT_TYPES
from ..llamacpp import runtime
from ..plan.plan import Plan
from ..system import child_process
from ..system.progress import Fraction

FLOATS = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
GGML_QNT_VERSION = 2
_LINE = re.compile(r"\[ *\d+/ *(\d+)\] (.+?) +- \[.*MiB(?: -> +[\d.]+ MiB \((\w+)\))?$", re.MULTILINE)
_DONE = re.compile(r"^\[ *(\d+)/ *(\d+)\] ")


@dataclass(frozen=True)
class Quantisation:
    """What --outtype, --imatrix and --threads ask of llama-quantize."""

    type: str  # one of WEIGHT_TYPES
    imatrix: Path | None = None
    n_threads: int | None = None  # None: as many as the machine has


@dataclass(frozen=True)
class Predicted:
    """A tensor that llama-quantize will write. `shape` is in ggml order."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    n_bytes: int


@dataclass(frozen=True)
class Prediction:
    metadata: dict[str, RawValue]  # as many bytes as the real one; llama-quantize orders it differently
    tensors: tuple[Predicted, ...]

    def pieces(self, max_bytes: int | None) -> tuple[Piece[Predicted], ...]:
        return pieces(3, self.metadata, self.tensors, DEFAULT_ALIGNMENT, max_bytes)


def check_input(header: Header) -> None:
    """Raises Unsupported where quantising would lose quality for a second time, or llama-quantize cannot do it."""
    for info in header.tensors.values():
        if info.type not in FLOATS:
            raise Unsupported(
                f"{header.path}: tensor '{info.name}': is {info.type.name} already; without --outtype it stays as it is"
            )
    if header.alignment != DEFAULT_ALIGNMENT:
        raise Unsupported(f"{header.path}: general.alignment: {header.alignment}, llama-quantize writes 32 only")


def predict(plan: Plan, how: Quantisation) -> Prediction:
    """What llama-quantize will make of the plan's file. Raises ShareattError if it will refuse."""
    imatrix_keys = _imatrix_keys(how)
    with tempfile.TemporaryDirectory(prefix="shareatt-") as folder:
        sa = Path(folder) / "sa.gguf"
        (piece,) = plan.pieces()
        with sa.open("wb") as file:  # the header is all that a dry run reads
            file.write(piece.header)
            file.truncate(piece.file_size)
        log = _run(["--dry-run", *_imatrix(how), str(sa)], how, plan.dense.path)
    if "actually completing this quantization will require an imatrix" in log:
        raise Unsupported(f"{plan.dense.path}: --outtype {how.type} needs an importance matrix; add --imatrix FILE")
    types = {name: type for _, name, type in _LINE.findall(log)}
    copies = {copy.name: copy for copy in plan.tensors}
    if types.keys() != copies.keys():
        raise ShareattError(f"{plan.dense.path}: llama-quantize --dry-run: its log cannot be read")
    tensors = []
    for name, type_name in types.items():
        copy = copies[name]
        type = _type(type_name, how) if type_name else copy.type
        block, block_bytes = GGML_QUANT_SIZES[type]
        tensors.append(Predicted(name, copy.shape, type, math.prod(copy.shape) // block * block_bytes))
    metadata = plan.metadata | {
        "general.quantization_version": raw_u32(GGML_QNT_VERSION),
        "general.file_type": raw_u32(WEIGHT_TYPES[how.type]),
    }
    return Prediction(metadata | imatrix_keys, tuple(tensors))


def _type(name: str, how: Quantisation) -> GGMLQuantizationType:
    try:
        return GGMLQuantizationType[name.upper()]
    except KeyError:
        raise Unsupported(f"--outtype {how.type}: the gguf package does not know {name} yet; try a newer one") from None


def quantize(sa: Path, out: Path, how: Quantisation, watch: Fraction) -> None:
    """Write the SA file `sa` to `out` with other weight types. Raises ShareattError with what llama-quantize says."""
    _run([*_imatrix(how), str(sa.absolute()), str(out.absolute())], how, sa, watch)


def _imatrix(how: Quantisation) -> list[str]:
    return ["--imatrix", how.imatrix.name] if how.imatrix else []


def _imatrix_keys(how: Quantisation) -> dict[str, RawValue]:
    """What llama-quantize notes of an importance matrix; it cuts texts at 127 bytes."""
    if how.imatrix is None:
        return {}
    header = read_header(how.imatrix)
    if header.text("general.type", "") != "imatrix":
        raise BadInput(f"{how.imatrix}: general.type: not an importance matrix; make one with llama-imatrix")
    datasets = header.value("imatrix.datasets")
    keys = {"file": raw_string(_cut(how.imatrix.name))}
    if isinstance(datasets, list) and datasets:
        keys["dataset"] = raw_string(_cut(str(datasets[0])))
    keys["entries_count"] = raw_u32(0)
    if header.integer("imatrix.chunk_count", 0) > 0:
        keys["chunks_count"] = raw_u32(0)
    return {f"quantize.imatrix.{key}": raw for key, raw in keys.items()}


def _cut(text: str) -> str:
    return text.encode()[:127].decode(errors="ignore")


def _run(arguments: Sequence[str], how: Quantisation, what: Path, watch: Fraction = lambda fraction: None) -> str:
    """llama-quantize's log. It runs in the folder of the importance matrix, whose name goes into the file."""
    log: list[str] = []

    def look(line: str) -> None:
        log.append(line)
        if done := _DONE.match(line):
            watch(int(done[1]) / int(done[2]))

    n_threads = [] if how.n_threads is None else [str(how.n_threads)]
    command = [str(runtime.tool("llama-quantize")), *arguments, how.type, *n_threads]
    status = child_process.run(command, look, cwd=how.imatrix.parent if how.imatrix else None)
    if status:
        raise ShareattError(f"{what}: llama-quantize {how.type}: {_reason(log, status)}")
    return "".join(log)


def _reason(log: Sequence[str], status: int) -> str:
    lines = [line.strip() for line in log if line.strip()]
    errors = [line for line in lines if re.search(r"error|failed|requires|invalid", line, re.IGNORECASE)]
    return (errors or lines or [f"exit status {status}"])[0]
