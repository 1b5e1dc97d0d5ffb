"""The costs that a search has measured, kept in a file, so that an interrupted search goes on where it was."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..model.spans import SourceMap
from ..system.staging import write_text


class CostCache:
    """Measures each source map once. Called with a map, it returns its cost.

    `path`: the file; without it, costs are kept in memory only. `settings`: what the costs depend on. Raises BadInput
    where the file is not the state of a search, or of a search with other settings.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], cost: Callable[[SourceMap], float]) -> None:
        self._path, self._settings, self._cost = path, dict(settings), cost
        self._known = self._read(path) if path is not None and path.exists() else {}
        self.n_measured = 0

    def __call__(self, source_layers: SourceMap) -> float:
        if source_layers not in self._known:
            self._known[source_layers] = self._cost(source_layers)
            self.n_measured += 1
            if self._path is not None:
                costs = [[list(key), cost] for key, cost in self._known.items()]
                write_text(self._path, json.dumps({"settings": self._settings, "costs": costs}), force=True)
        return self._known[source_layers]

    def _read(self, path: Path) -> dict[SourceMap, float]:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            known = {tuple(map(int, key)): float(cost) for key, cost in data["costs"]}
            settings = dict(data["settings"])
        except (ValueError, TypeError, KeyError):
            raise BadInput("not the state of a search", path=path, next_step="name another file") from None
        if settings != self._settings:
            other = next((key for key in self._settings if settings.get(key) != self._settings[key]), "settings")
            raise BadInput(
                f"is the state of another search ({other})",
                path=path,
                next_step="remove it or name another folder",
            )
        return known
