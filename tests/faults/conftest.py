"""The properties that every refusal must have."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.faults.folder_state import folder_state


@pytest.fixture
def refuses(run: Callable[..., object], tmp_path: Path) -> Callable[..., str]:
    """refuses(*arguments) runs a command, expects one error line and unchanged files, and returns the line."""

    def refuses(*arguments: object, status: int = 1) -> str:
        before = folder_state(tmp_path)
        done = run(*arguments)
        assert done.status == status, done
        assert done.stdout == "" and folder_state(tmp_path) == before
        return done.error

    return refuses
