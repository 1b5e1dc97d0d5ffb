"""Save the state of a healing to a file in a folder beside the output, so that an interrupted healing can go on.

Each save replaces the whole file. The state has no random generator: batches depend only on the seed and the step, and
nothing else is random.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BadInput, OutputRefused
from .curve import CurvePoint, Scores

FILE = "state.pt"


@dataclass(frozen=True)
class SavedState:
    """The state after some steps: `step` is the next one, `seconds` the time of training so far.

    `rate` is the learning rate, `leaves` are TrainedWeights.leaves, `optimizer` is the state_dict() of the optimizer.
    """

    step: int
    seconds: float
    rate: float
    curve: Sequence[CurvePoint]
    leaves: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]


def folder_of(out: Path) -> Path:
    """Return the folder for the state of a healing that writes `out`."""
    return out.with_name(f"{out.name}.healing")


def prepare(out: Path, settings: Mapping[str, Any], *, resume: bool, force: bool) -> SavedState | None:
    """Return the state to go on from, None to begin; with `force` a state that is not resumed is removed.

    `settings` is everything that the result depends on. Raises OutputRefused if there is a state and neither option
    is given, BadInput if `resume` finds no state, or one that cannot be read or has other settings.
    """
    folder = folder_of(out)
    if resume:
        return _load(folder, settings)
    if folder.exists():
        if not force:
            next_step = "--resume goes on with it, --force begins again"
            raise OutputRefused("an interrupted healing", path=folder, next_step=next_step)
        remove(out)
    return None


def _load(folder: Path, settings: Mapping[str, Any]) -> SavedState:
    path = folder / FILE
    if not path.is_file():
        raise BadInput("no interrupted healing to --resume", path=folder)
    try:
        fields = torch.load(path, map_location="cpu", weights_only=True)  # which runs no code
        saved_settings = fields.pop("settings")
        curve = [CurvePoint(**(point | {"scores": Scores(**point["scores"])})) for point in fields.pop("curve")]
        saved = SavedState(curve=curve, **fields)
    except Exception as error:
        next_step = "--force instead of --resume begins again"
        raise BadInput(f"cannot be read ({error})", path=path, next_step=next_step) from None
    for name in sorted(settings.keys() | saved_settings.keys()):
        if settings.get(name) != saved_settings.get(name):
            reason = f"begun with {name} {saved_settings.get(name)}, not {settings.get(name)}"
            raise BadInput(reason, path=folder, field="--resume", next_step="--force begins again")
    return saved


def save(out: Path, settings: Mapping[str, Any], state: SavedState) -> None:
    """Replace the state of the healing that writes `out`."""
    folder = folder_of(out)
    folder.mkdir(exist_ok=True)
    temporary = folder / f"{FILE}.new"
    with temporary.open("wb") as file:
        curve = [asdict(point) for point in state.curve]  # plain values, which torch.load reads without running code
        torch.save({"settings": dict(settings)} | vars(state) | {"curve": curve}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / FILE)


def remove(out: Path) -> None:
    """Remove the state; the folder too, unless it holds files that this module did not write."""
    folder = folder_of(out)
    for name in (FILE, f"{FILE}.new"):
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
