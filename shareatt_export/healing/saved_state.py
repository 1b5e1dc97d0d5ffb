"""What an interrupted healing goes on with: a file in a folder beside the output, replaced as a whole every so often.

Batches are a function of seed and step and nothing else is random, so the step is all there is to know of chance.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BadInput, OutputRefused

FILE = "state.pt"


@dataclass(frozen=True)
class SavedState:
    step: int  # the next one
    seconds: float  # of training so far
    curve: Sequence[dict[str, Any]]  # the scores at 0, 10, 20 ... per cent
    leaves: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]


def folder_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.healing")


def prepare(out: Path, settings: Mapping[str, Any], resume: bool, force: bool) -> SavedState | None:
    """What to go on from. `settings` is all that the result hangs on. Raises OutputRefused or BadInput."""
    folder = folder_of(out)
    if resume:
        return _load(folder, settings)
    if folder.exists():
        if not force:
            raise OutputRefused(f"{folder}: an interrupted healing; --resume goes on with it, --force begins again")
        remove(out)
    return None


def _load(folder: Path, settings: Mapping[str, Any]) -> SavedState:
    path = folder / FILE
    if not path.is_file():
        raise BadInput(f"{folder}: no interrupted healing to --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)  # which runs no code
        theirs, progress = state.pop("settings"), SavedState(**state)
    except Exception as error:
        raise BadInput(f"{path}: cannot be read ({error}); --force instead of --resume begins again") from None
    for name in sorted(settings.keys() | theirs.keys()):
        if settings.get(name) != theirs.get(name):
            begun, asked = theirs.get(name), settings.get(name)
            raise BadInput(f"{folder}: --resume: begun with {name} {begun}, not {asked}; --force begins again")
    return progress


def save(out: Path, settings: Mapping[str, Any], progress: SavedState) -> None:
    folder = folder_of(out)
    folder.mkdir(exist_ok=True)
    temporary = folder / f"{FILE}.new"
    with temporary.open("wb") as file:
        torch.save({"settings": dict(settings)} | vars(progress), file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / FILE)


def remove(out: Path) -> None:
    """Only what was made here: the folder goes if nothing else is in it."""
    folder = folder_of(out)
    for name in (FILE, f"{FILE}.new"):
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
