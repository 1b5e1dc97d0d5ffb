"""The name of an SA file in a folder, by the GGUF naming convention (ggml's docs/gguf.md)."""

import math
import re
from collections import Counter
from pathlib import Path

import gguf
from gguf import GGMLQuantizationType, LlamaFileType

from ..model.map_text import short_text
from ..plan.plan import Plan


def destination(plan: Plan, out: Path, folder: Path | None = None, encoding: str | None = None) -> Path:
    """Return the file to write: `out`, or in `folder` a file named by the plan: 'Small-0.4M-SA6-9-v1.0-F16.gguf'.

    `encoding` names the weight type, if it differs from the plan's.
    """
    return out if folder is None else folder / file_name(plan, encoding or _encoding(plan))


def file_name(plan: Plan, encoding: str) -> str:
    def text(field: str) -> str:
        return _plain(plan.dense.text(f"general.{field}", ""))

    name = gguf.naming_convention(
        text("name") or plan.dense.path.stem,
        text("basename") or None,
        "-".join(filter(None, (text("finetune"), f"SA{_plain(short_text(plan.attention))}"))),
        text("version") or "v1.0",
        _size_label(plan),
        encoding,
    )
    return f"{name}.gguf"


def _plain(text: str) -> str:
    """Replace what a file name may not contain, and the characters that separate parts of the convention."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")


def _size_label(plan: Plan) -> str:
    label = plan.dense.text("general.size_label", "")
    if f"{plan.facts.arch}.expert_count" in plan.dense.metadata and label:
        return label
    n_elements = sum(math.prod(copy.shape) for copy in plan.tensors)
    return gguf.size_label(n_elements, n_elements, 0, 0)


def _encoding(plan: Plan) -> str:
    file_type = plan.dense.value("general.file_type")
    if isinstance(file_type, int) and file_type in set(LlamaFileType):
        return LlamaFileType(file_type).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    n_bytes: Counter[GGMLQuantizationType] = Counter()
    for copy in plan.tensors:
        n_bytes[copy.type] += copy.n_bytes
    return n_bytes.most_common(1)[0][0].name
