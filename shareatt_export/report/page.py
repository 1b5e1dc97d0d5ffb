"""The page: what is measured of each model, as one HTML file that needs nothing else and asks nobody for anything.

    page([*read_measurements(Path("found/search.json")), *read_measurements(Path("eval.json"))])

All text comes through templates that escape it. The content security policy allows the page's own style and script, by
their hashes, and nothing else.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .analyses import Analysis, analysis
from .charts import FRAME
from .front_figures import FrontFigure, front_figure
from .heatmaps import N_COLOURS
from .map_figures import MapFigure, MapFigures
from .maps import Alone, add_alone, read_map, read_shape
from .measurements import Measurement
from .origins import origin
from .points import fronts
from .quality import Quality, quality
from .speed import Speed, speed
from .tables import Table


@dataclass(frozen=True)
class Model:
    """What the page shows of one model. A section without entries is left out."""

    name: str
    maps: tuple[MapFigure, ...]
    fronts: tuple[FrontFigure, ...]
    analyses: tuple[Analysis, ...]
    qualities: tuple[Quality, ...]
    speeds: tuple[Speed, ...]

    @property
    def data(self) -> dict[str, Any]:
        """What the script reads."""
        found: dict[str, Any] = {}
        for each in self.analyses:
            found |= each.data
        return found | {front.id: front.data for front in self.fronts}


def page(measurements: Sequence[Measurement]) -> str:
    """Return the page. Raises BadInput where a value in a file has a wrong type, or contradicts others."""
    by_model: dict[str, list[Measurement]] = {}
    for each in measurements:
        by_model.setdefault(each.identity, []).append(each)
    models = [_model(f"model{i}", group) for i, group in enumerate(by_model.values())]
    origins: tuple[Table, ...] = tuple(map(origin, measurements))
    data: dict[str, Any] = {}
    for model in models:
        data |= model.data
    style, script = _static("report.css"), _static("report.js")
    return (
        _environment()
        .get_template("page.html")
        .render(
            models=models,
            origins=origins,
            data=data,
            style=Markup(style),  # noqa: S704  (our own files)
            script=Markup(script),  # noqa: S704
            policy=policy(style, script),
        )
    )


def policy(style: str, script: str) -> str:
    """Return the content security policy of a page with this style and this script, and no other content."""
    return (
        f"default-src 'none'; style-src '{_source(style)}'; script-src '{_source(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _source(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _model(id: str, group: Sequence[Measurement]) -> Model:
    alone = Alone()
    for each in group:
        add_alone(alone, each.record)
    figures = MapFigures(id, alone)
    drawn = tuple(front_figure(f"{id}-front{i}", front, figures) for i, front in enumerate(fronts(group)))
    benches = [each for each in group if each.kind == "bench"]
    for each in benches:
        if found := read_map(each.record, read_shape(each.record)):
            figures.id_of(found, PurePath(each.record.text("sa") or "SA").name)
    return Model(
        name=PurePath(group[0].model).name,
        maps=figures.all,
        fronts=drawn,
        analyses=tuple(analysis(each, f"{id}-analysis{i}") for i, each in enumerate(group) if each.kind == "analyze"),
        qualities=tuple(quality(each) for each in group if each.kind == "eval"),
        speeds=tuple(map(speed, benches)),
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("shareatt_export.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"frame": FRAME, "n_colours": N_COLOURS}
    return environment


def _static(name: str) -> str:
    source, _, _ = _environment().loader.get_source(_environment(), name)  # type: ignore[union-attr]  # it has one
    return source
