"""The folder that keeps what an interrupted search has done: fits or errors, as arrays, and the costs of maps."""

import json
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import BadInput
from ..system.staging import made_folder, publish, staged, write_text

Costs = dict[tuple[int, ...], list[float]]  # by the numbers of a map: its costs on the first windows of the search
Arrays = Mapping[str, npt.NDArray[Any]]
T = TypeVar("T")

SETTINGS, COSTS, ARRAYS = "settings.json", "costs.json", "arrays.npz"


class State:
    """`folder`: made if it does not exist; with None, nothing is kept. `settings`: what the results depend on.

    Raises BadInput where the folder is not the state of a search, or of a search with other settings.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        self._folder = folder
        if folder is None:
            return
        with made_folder(folder):
            found = self._read(SETTINGS, lambda path: dict(json.loads(path.read_text(encoding="utf-8"))))
            if found is None:
                write_text(folder / SETTINGS, json.dumps(dict(settings), indent=2) + "\n", force=False)
            elif found != dict(settings):
                other = next((key for key in settings if found.get(key) != settings[key]), "settings")
                raise BadInput(
                    f"is the state of another search ({other})",
                    path=folder,
                    next_step="remove it or name another folder",
                )

    def costs(self) -> Costs:
        """Return the saved costs, none if there are none. Raises BadInput where the file holds something else."""

        def read(path: Path) -> Costs:
            pairs = json.loads(path.read_text(encoding="utf-8"))
            return {tuple(map(int, key)): [float(cost) for cost in costs] for key, costs in pairs}

        return self._read(COSTS, read) or {}

    def save_costs(self, costs: Costs) -> None:
        if self._folder is not None:
            write_text(self._folder / COSTS, json.dumps([[key, found] for key, found in costs.items()]), force=True)

    def arrays(self) -> Arrays | None:
        """Return the saved arrays, None if there are none. Raises BadInput as costs() does."""

        def read(path: Path) -> Arrays:
            with np.load(path, allow_pickle=False) as file:
                return dict(file)

        return self._read(ARRAYS, read)

    def save_arrays(self, arrays: Arrays) -> None:
        if self._folder is not None:
            path = self._folder / ARRAYS
            with staged(path) as work:
                np.savez(work / ARRAYS, allow_pickle=False, **arrays)
                publish({work / ARRAYS: path}, [], force=True)

    def _read(self, name: str, read: Callable[[Path], T]) -> T | None:
        """Return what `read` reads from a file of the folder, None if there is no such file."""
        if self._folder is None:
            return None
        path = self._folder / name
        with suppress(FileNotFoundError):
            try:
                return read(path)
            except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile):
                raise BadInput("not the state of a search", path=path, next_step="name another folder") from None
        return None
