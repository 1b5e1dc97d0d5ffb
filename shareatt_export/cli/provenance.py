"""What every report in JSON says of how it came about: enough to repeat the measurement."""

import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .._version import __version__
from ..formats.identity import own_blake3
from ..formats.shards import read_model
from ..llamacpp.pin import patch_id, pin
from ..model.attention_map import AttentionMap
from ..model.facts import Facts
from ..system.operating_system import n_usable_cpus, processor_name
from .output import command_line


def provenance(models: Iterable[Path | str]) -> dict[str, Any]:
    """Return the tool, its runtime, the command, the time, the machine, and the identity of each model.

    Raises BadInput if a model cannot be read any more.
    """
    return {
        "tool": f"shareatt-export {__version__}",
        "llama_cpp": pin().llama_cpp_commit,
        "patch": patch_id(),
        "command": command_line(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": platform.platform(),
            "processor": processor_name(),
            "cpus": n_usable_cpus(),
        },
        "models": [{"model": str(model), "tensors_blake3": _blake3(Path(model))} for model in models],
    }


def _blake3(model: Path) -> str | None:
    """Return the identity of a GGUF's tensors; None for a checkpoint, which was converted for the measurement only."""
    return None if model.is_dir() else own_blake3(read_model(model))


def shape_dict(facts: Facts) -> dict[str, Any]:
    """Return what a reader of maps must know of a model: its layers, its heads, and the numbers in a head's K and V."""
    return {
        "architecture": facts.arch,
        "n_head": list(facts.n_head),
        "n_head_kv": list(facts.n_head_kv),
        "head_dim_k": facts.head_dim_k,
        "head_dim_v": facts.head_dim_v,
    }


def sources_list(attention: AttentionMap) -> list[list[int]]:
    """Return a map as --map takes it."""
    return [list(sources) for sources in attention.sources]
