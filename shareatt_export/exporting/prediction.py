"""What llama-quantize will write of an SA file: sizes and names are known before anything is computed.

predict() asks its dry run. The export checks the file that llama-quantize writes against the prediction.
"""

import math
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ..errors import BadInput, ShareattError, Unsupported
from ..formats.gguf_encode import raw_string, raw_u32
from ..formats.gguf_header import DEFAULT_ALIGNMENT, Header, RawValue
from ..formats.gguf_reader import read_header
from ..formats.shards import Piece, pieces
from ..formats.weight_types import WEIGHT_TYPES
from ..llamacpp.quantize import Quantisation, dry_run
from ..plan.plan import Plan

FLOATS = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
GGML_QNT_VERSION = 2
_LINE = re.compile(r"\[ *\d+/ *(\d+)\] (.+?) +- \[.*MiB(?: -> +[\d.]+ MiB \((\w+)\))?$", re.MULTILINE)


@dataclass(frozen=True)
class Predicted:
    """A tensor that llama-quantize will write. `shape` is in ggml order."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    n_bytes: int


@dataclass(frozen=True)
class Prediction:
    """`metadata` takes as many bytes as the real one, which llama-quantize writes in another order."""

    metadata: dict[str, RawValue]
    tensors: tuple[Predicted, ...]

    def pieces(self, max_bytes: int | None) -> tuple[Piece[Predicted], ...]:
        return pieces(3, self.metadata, self.tensors, DEFAULT_ALIGNMENT, max_bytes)


def check_input(header: Header) -> None:
    """Raises Unsupported if the model is quantised already, or llama-quantize cannot write its alignment."""
    for info in header.tensors.values():
        if info.type not in FLOATS:
            raise Unsupported(
                f"is {info.type.name} already", path=header.path, field=f"tensor '{info.name}'",
                next_step="without --outtype it stays as it is",
            )  # fmt: skip
    if header.alignment != DEFAULT_ALIGNMENT:
        why = f"{header.alignment}, llama-quantize writes {DEFAULT_ALIGNMENT} only"
        raise Unsupported(why, path=header.path, field="general.alignment")


def predict(plan: Plan, quantisation: Quantisation) -> Prediction:
    """Return what llama-quantize will write for the plan's file. Raises ShareattError if it will refuse."""
    imatrix_keys = _imatrix_keys(quantisation)
    with tempfile.TemporaryDirectory(prefix="shareatt-") as folder:
        sa = Path(folder) / "sa.gguf"
        (piece,) = plan.pieces()
        with sa.open("wb") as file:  # the header is all that a dry run reads
            file.write(piece.header)
            file.truncate(piece.file_size)
        log = dry_run(sa, quantisation, plan.dense.path)
    if "actually completing this quantization will require an imatrix" in log:
        raise Unsupported(
            f"--outtype {quantisation.type} needs an importance matrix",
            path=plan.dense.path,
            next_step="add --imatrix FILE",
        )
    types = {name: type for _, name, type in _LINE.findall(log)}
    copies = {copy.name: copy for copy in plan.tensors}
    if types.keys() != copies.keys():
        raise ShareattError("its log cannot be read", path=plan.dense.path, field="llama-quantize --dry-run")
    tensors = []
    for name, type_name in types.items():
        copy = copies[name]
        type = _type(type_name, quantisation) if type_name else copy.type
        block, block_bytes = GGML_QUANT_SIZES[type]
        tensors.append(Predicted(name, copy.shape, type, math.prod(copy.shape) // block * block_bytes))
    metadata = plan.metadata | {
        "general.quantization_version": raw_u32(GGML_QNT_VERSION),
        "general.file_type": raw_u32(WEIGHT_TYPES[quantisation.type]),
    }
    return Prediction(metadata | imatrix_keys, tuple(tensors))


def _type(name: str, quantisation: Quantisation) -> GGMLQuantizationType:
    try:
        return GGMLQuantizationType[name.upper()]
    except KeyError:
        raise Unsupported(
            f"the gguf package does not know {name} yet",
            field=f"--outtype {quantisation.type}",
            next_step="try a newer one",
        ) from None


def _imatrix_keys(quantisation: Quantisation) -> dict[str, RawValue]:
    """Return the keys that llama-quantize writes about an importance matrix; it cuts texts at 127 bytes."""
    if quantisation.imatrix is None:
        return {}
    header = read_header(quantisation.imatrix)
    if header.text("general.type", "") != "imatrix":
        raise BadInput(
            "not an importance matrix",
            path=quantisation.imatrix,
            field="general.type",
            next_step="make one with llama-imatrix",
        )
    datasets = header.value("imatrix.datasets")
    keys = {"file": raw_string(_cut(quantisation.imatrix.name))}
    if isinstance(datasets, list) and datasets:
        keys["dataset"] = raw_string(_cut(str(datasets[0])))
    keys["entries_count"] = raw_u32(0)
    if header.integer("imatrix.chunk_count", 0) > 0:
        keys["chunks_count"] = raw_u32(0)
    return {f"quantize.imatrix.{key}": raw for key, raw in keys.items()}


def _cut(text: str) -> str:
    return text.encode()[:127].decode(errors="ignore")
