"""The numbers of bytes that a plan predicts."""

from pathlib import Path

import pytest

from tests.support import small_gguf
from tests.support.exports import plan_of


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return small_gguf.write_dense(tmp_path / "dense.gguf", bias=True)


def test_plan_counts_bytes(dense):
    plan = plan_of(dense)
    row = 64 * 4
    assert plan.weight_bytes_before - plan.weight_bytes_after == 3 * ((64 + 32) * row + (64 + 32) * 4)
    assert plan.kv_bytes_per_token_before == 12 * (32 + 32) * 2
    assert plan.kv_bytes_per_token_after == plan.kv_bytes_per_token_before - 3 * 32 * 2
