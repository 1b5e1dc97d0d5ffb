"""The figures of the maps of a model: one for each different map, though several files may have measured it."""

import json
from dataclasses import dataclass, replace

from .maps import Alone, Layer, Unit, UnitMap, layers, summary


@dataclass(frozen=True)
class MapFigure:
    """`names`: what the files call the map. `source_heads`: the map as --map takes it, None if it is not of heads."""

    id: str
    names: tuple[str, ...]
    unit: Unit
    summary: str
    layers: tuple[Layer, ...]
    source_heads: str | None


class MapFigures:
    """Collects the figures of one model."""

    def __init__(self, prefix: str, alone: Alone) -> None:
        self._prefix, self._alone = prefix, alone
        self._figures: dict[UnitMap, MapFigure] = {}

    @property
    def all(self) -> tuple[MapFigure, ...]:
        return tuple(self._figures.values())

    def id_of(self, found: UnitMap, name: str) -> str:
        """Return the id of the figure of a map, which is made if there is none."""
        figure = self._figures.get(found) or self._made(found)
        if name not in figure.names:
            figure = replace(figure, names=(*figure.names, name))
        self._figures[found] = figure
        return figure.id

    def _made(self, found: UnitMap) -> MapFigure:
        rows = None if found.unit == "layer" else json.dumps({"source_heads": found.attention.sources})
        id, drawn = f"{self._prefix}-map{len(self._figures)}", tuple(layers(found, self._alone))
        return MapFigure(id, (), found.unit, summary(found), drawn, rows)
