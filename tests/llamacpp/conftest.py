"""Tiny models of torch and their GGUFs, which several modules compare the runtime with."""

from pathlib import Path

import pytest

from shareatt_export.llamacpp import runtime
from tests.support import parity
from tests.support.parity import Case


class Cases(dict[tuple[str, str], Case]):
    """Cases by the key of HEADS in tiny_models and the type of the weights. The first that asks for one makes it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __missing__(self, key: tuple[str, str]) -> Case:
        case = self[key] = parity.make_case(*key, self.folder)
        return case


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory, built: runtime.RuntimeStatus) -> Cases:
    return Cases(tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory, built: runtime.RuntimeStatus) -> Case:
    """Heads wide enough for quantised caches."""
    return parity.make_case("GQA", "f32", tmp_path_factory.mktemp("wide"), parity.WIDE)
