"""Fixtures of all tests. No fixture skips: without the runtime, the tests that need it fail and say how to build it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shareatt_export.cli import main as cli
from shareatt_export.llamacpp import runtime
from shareatt_export.system.operating_system import lock
from tests.support import conversions, tiny_models
from tests.support.fault_counts import pytest_configure, pytest_itemcollected  # noqa: F401  (hooks)
from tests.support.reports import report_files, write_reports

DEFAULT_MARKS = "not slow and not real"  # as in pyproject.toml


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="Test all architectures, and run the slow tests.")
    parser.addoption("--real", action="store_true", help="Test the large models of scripts/fetch_models.py, too.")
    parser.addoption("--kills", type=int, default=1, help="Factor for the number of signals at random times.")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Leave out the tests that --full and --real do not ask for, unless -m chooses some."""
    if config.option.markexpr == DEFAULT_MARKS:
        left_out = [mark for mark, option in (("slow", "--full"), ("real", "--real")) if not config.getoption(option)]
        config.option.markexpr = " and ".join(f"not {mark}" for mark in left_out)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests/faults first: its tests fork, and a forked process hangs in OpenMP if its parent has used OpenMP."""
    items.sort(key=lambda item: "faults" not in item.path.parts)


@dataclass(frozen=True)
class Result:
    """The exit status and the output of a command."""

    status: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The error line; AssertionError if there is none, more than one, or a traceback."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("Error:")]
        assert len(lines) == 1 and "Traceback" not in self.stderr, self.stderr
        return lines[0]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Return a function that runs the command line in this process: run("inspect", path)."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["shareatt-export", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capfd.readouterr()
        return Result(int(exit.value.code or 0), out, err)

    return run


@pytest.fixture(scope="session")
def built() -> runtime.RuntimeStatus:
    """The patched runtime. The test fails if it is not built."""
    return runtime.require()


@pytest.fixture(scope="session")
def demo_dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained demo model as dense GGUF, made by the real converter."""
    return conversions.convert(tiny_models.DEMO, tmp_path_factory.mktemp("demo") / "dense.gguf", "auto")


@pytest.fixture(scope="session")
def demo_f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with F32 weights: what it computes hardly depends on how many tokens are computed at a time."""
    return conversions.convert(tiny_models.DEMO, tmp_path_factory.mktemp("demo-f32") / "dense.gguf", "f32")


@pytest.fixture(scope="session")
def demo_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tasks that scripts/make_demo_tasks.py makes of the demo model's held-out text."""
    folder = tmp_path_factory.mktemp("tasks")
    script = Path(__file__).parents[1] / "scripts" / "make_demo_tasks.py"
    subprocess.run([sys.executable, script, tiny_models.DEMO / "heldout.txt", folder], check=True)
    return folder


@pytest.fixture(scope="session")
def reports(demo_dense: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The JSON files of analyze, both searches, eval and bench; the pages of these commands are beside them.

    They take half a minute, so the first process of pytest-xdist that asks makes them for all.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "reports"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock_file:
        lock(lock_file.fileno(), wait=True)
        if not (folder / "made").exists():
            write_reports(demo_dense, folder)
            (folder / "made").touch()
    return report_files(folder)


@pytest.fixture
def data(reports: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """The objects in these files, for a test to change."""
    return {kind: json.loads(path.read_text()) for kind, path in reports.items()}
