"""The direction of imports: a package of shareatt_export imports only packages that stand below it in LAYERS."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "shareatt_export"
# From top to bottom. Packages on one line do not import each other.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"__init__"},
    {"api"},
    {"healing"},
    {"exporting"},
    {"searching", "harness"},
    {"evaluation"},
    {"fitting", "benchmark"},
    {"llamacpp", "plan", "checkpoint", "report"},
    {"model"},
    {"formats"},
    {"system"},
    {"errors", "_version"},
]
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
# Distributions that only some packages import: they are optional, or slow to load.
ALLOWED = {
    **dict.fromkeys(("torch", "transformers"), ("healing", "checkpoint")),
    **dict.fromkeys(("lm_eval", "tqdm"), ("harness",)),
    **dict.fromkeys(("jinja2", "markupsafe"), ("report",)),
    **dict.fromkeys(("click", "click_default_group", "rich", "matplotlib"), ("cli",)),
}


def imported(module: str, source: str) -> Iterator[str]:
    """Yield the absolute name of everything that a module imports, also in functions and under TYPE_CHECKING."""
    package = module.removesuffix(".__init__") if module.endswith(".__init__") else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(sources: Mapping[str, str]) -> list[str]:
    """Return the forbidden imports of modules, given as a mapping from module name to source text."""
    found = []
    for module, source in sources.items():
        room = module.split(".")[1]
        if room not in LEVELS:
            found.append(f"{module}: {room} is not in the table")
            continue
        for name in imported(module, source):
            first, _, rest = name.partition(".")
            target = rest.split(".")[0]
            if first != PACKAGE:
                wrong = room not in ALLOWED.get(first, (room,))
            elif target not in LEVELS:  # a name that __init__ exports
                wrong = room != "__init__" and LEVELS["__init__"] <= LEVELS[room]
            else:
                wrong = room != target and LEVELS[target] <= LEVELS[room]
            if wrong:
                found.append(f"{module}: imports {name}")
    return found


def repository() -> dict[str, str]:
    """Return the source text of each module of shareatt_export by its name."""
    paths = (ROOT / PACKAGE).rglob("*.py")
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text() for path in paths}


def test_packages_import_only_what_stands_below_them():
    assert violations(repository()) == []


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("model.facts", "from ..formats.gguf_header import read_header", None),
        ("model.facts", "from .spans import parse_spans", None),
        ("model.facts", "from ..llamacpp import runtime", "llamacpp.runtime"),
        ("model.facts", "from ..llamacpp.runtime import require", "llamacpp.runtime.require"),
        ("model.facts", "from .. import plan", "plan"),
        ("model.facts", "from .. import __version__", "__version__"),
        ("model.facts", "import shareatt_export.cli.main", "cli.main"),
        ("plan.plan", "from ..checkpoint.hub import fetch", "checkpoint.hub.fetch"),
        ("system.streams", "def f():\n    from ..formats import shards", "formats.shards"),
        ("formats.shards", "if TYPE_CHECKING:\n    from ..plan.plan import Plan", "plan.plan.Plan"),
        ("errors", "from .system import signals", "system.signals"),
        ("plan.__init__", "from ..model import spans", None),
        ("plan.__init__", "from ..exporting import write", "exporting.write"),
        ("cli.main", "import click, rich.table\nfrom ..api import export", None),
    ],
)  # fmt: skip
def test_a_module_in_the_wrong_package_is_found(module: str, source: str, expected: str | None):
    found = violations({f"{PACKAGE}.{module}": source})
    assert found == ([f"{PACKAGE}.{module}: imports {PACKAGE}.{expected}"] if expected else [])


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("healing.heal", "import torch", []),
        ("llamacpp.engine", "def f():\n    import torch.nn", ["imports torch.nn"]),
        ("exporting.convert", "from transformers import AutoConfig", ["imports transformers.AutoConfig"]),
        ("harness.run", "import lm_eval.models, tqdm", []),
        ("evaluation.answers", "from lm_eval.api.model import LM", ["imports lm_eval.api.model.LM"]),
        ("evaluation.evaluate", "from rich.console import Console", ["imports rich.console.Console"]),
        ("benchmark.measure", "import matplotlib.pyplot as plt", ["imports matplotlib.pyplot"]),
        ("api", "import click, click_default_group", ["imports click", "imports click_default_group"]),
        ("utilities.text", "", ["utilities is not in the table"]),
    ],
)
def test_a_distribution_in_the_wrong_package_is_found(module: str, source: str, expected: list[str]):
    assert violations({f"{PACKAGE}.{module}": source}) == [f"{PACKAGE}.{module}: {problem}" for problem in expected]


@pytest.mark.parametrize("package", ["plan", "fitting", "exporting", "cli"])
def test_a_package_moved_below_is_found(package: str):
    moved = {
        name.replace(f".{package}.", ".errors."): source.replace(f"..{package}.", "..errors.")
        for name, source in repository().items()
        if name.startswith(f"{PACKAGE}.{package}.")
    }
    assert len(violations(moved)) > len(moved) / 2
