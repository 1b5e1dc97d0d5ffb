"""Run the runtime's llama-quantize, which keeps the metadata of Shared Attention.

quantize(Path("model.gguf"), Path("small.gguf"), Quantisation("Q4_K_M"), watch)
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ShareattError
from ..system import child_process
from ..system.progress import Fraction
from . import runtime

_SIZE = re.compile(r"quant size += +([0-9.]+) MiB")
_DONE = re.compile(r"^\[ *(\d+)/ *(\d+)\] ")


@dataclass(frozen=True)
class Quantisation:
    """The arguments of llama-quantize."""

    type: str  # one of WEIGHT_TYPES
    imatrix: Path | None = None
    n_threads: int | None = None  # None: as many as the machine has
    again: bool = False  # whether weights that are quantised already are quantised again, else they are refused


def quantize(model: Path, out: Path, quantisation: Quantisation, watch: Fraction) -> None:
    """Write a model to `out` with other weight types. Raises ShareattError with llama-quantize's reason."""
    _run([str(model.absolute()), str(out.absolute())], quantisation, model, watch)


def dry_run(model: Path, quantisation: Quantisation, named: Path) -> str:
    """Return what llama-quantize says that it would write. Errors name the model `named`.

    Raises ShareattError with llama-quantize's reason.
    """
    return _run(["--dry-run", str(model.absolute())], quantisation, named, lambda fraction: None)


def predicted_bytes(model: Path, quantisation: Quantisation) -> int:
    """Return the bytes of tensors that llama-quantize would write. Raises ShareattError with its reason."""
    if not (size := _SIZE.search(dry_run(model, quantisation, model))):
        raise ShareattError("its log cannot be read", path=model, field="llama-quantize --dry-run")
    return int(float(size[1]) * (1 << 20))


def _run(arguments: Sequence[str], quantisation: Quantisation, model: Path, watch: Fraction) -> str:
    """Run llama-quantize and return its log.

    It runs in the folder of the importance matrix, because it writes the path that it is given into the file.
    """
    log: list[str] = []

    def read_line(line: str) -> None:
        log.append(line)
        if done := _DONE.match(line):
            watch(int(done[1]) / int(done[2]))

    imatrix, n_threads = quantisation.imatrix, quantisation.n_threads
    options = [*(["--imatrix", imatrix.name] if imatrix else []), *(["--allow-requantize"] * quantisation.again)]
    threads = [] if n_threads is None else [str(n_threads)]
    command = [str(runtime.tool("llama-quantize")), *options, *arguments, quantisation.type, *threads]
    status = child_process.run(command, read_line, cwd=imatrix.parent if imatrix else None)
    if status:
        raise ShareattError(_reason(log, status), path=model, field=f"llama-quantize {quantisation.type}")
    return "".join(log)


def _reason(log: Sequence[str], status: int) -> str:
    lines = [line.strip() for line in log if line.strip()]
    errors = [line for line in lines if re.search(r"error|failed|requires|invalid", line, re.IGNORECASE)]
    return (errors or lines or [f"exit status {status}"])[0]
