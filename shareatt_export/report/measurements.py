"""The JSON files that analyze, search, eval and bench write: which of them a file is, and which model it measured."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ..errors import BadInput
from .values import Record

Kind = Literal["analyze", "search", "search --unit group", "eval", "bench"]
# The keys that every version of this tool has written.
KEYS: Mapping[Kind, frozenset[str]] = {
    "analyze": frozenset({"model", "similarity", "pairs"}),
    "search": frozenset({"model", "source_layers", "path", "baselines"}),
    "search --unit group": frozenset({"model", "source_heads", "found", "simple"}),
    "eval": frozenset({"text", "scores", "positions"}),
    "bench": frozenset({"dense", "sa", "settings", "rows"}),
}
LARGEST = 64 << 20  # bytes of a file; the page has all of it, and a browser must open that


@dataclass(frozen=True)
class Measurement:
    """What one file says. `name` is the name of the file, for people."""

    kind: Kind
    name: str
    record: Record

    @cached_property
    def model(self) -> str:
        """The dense model, as the command line had it. Raises BadInput where the file names none."""
        scores = self.record.records("scores")
        record, key = {"eval": (scores[0] if scores else self.record, "model"), "bench": (self.record, "dense")}.get(
            self.kind, (self.record, "model")
        )
        if (model := record.text(key)) is None:
            raise record.wrong(key, "is missing")
        return model

    @cached_property
    def identity(self) -> str:
        """What is the same in all measurements of one model: the hash of its tensors, else its path."""
        models = self.record.only_record("provenance").records("models")
        return (models and models[0].text("tensors_blake3")) or self.model


def read_measurements(path: Path) -> list[Measurement]:
    """Return what a file says: one measurement, or an analysis of each of several models.

    Raises BadInput where it cannot be read, or no command of this tool wrote it.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise BadInput(f"is larger than {LARGEST >> 20} MiB", path=path)
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise BadInput(error.strerror or "cannot be read", path=path) from None
    except (ValueError, RecursionError):
        raise BadInput("is not a JSON file", path=path, next_step=NEXT_STEP) from None
    several = data.get("analyses") if isinstance(data, dict) else None
    return [_measurement(each, str(path)) for each in (several if isinstance(several, list) and several else [data])]


def measurement(data: Mapping[str, Any], name: str) -> Measurement:
    """Return what a command is about to write into a file of this name, as read_measurements() reads it then."""
    return _measurement(json.loads(json.dumps(data)), name)


def _measurement(data: Any, name: str) -> Measurement:
    for kind, keys in KEYS.items():
        if isinstance(data, dict) and keys <= data.keys():
            return Measurement(kind, name, Record(data, name))
    raise BadInput("no command of this tool wrote it", path=name, next_step=NEXT_STEP)


NEXT_STEP = "name files that analyze, search, eval or bench wrote with --json or -o"
