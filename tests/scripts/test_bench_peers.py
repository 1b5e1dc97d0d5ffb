"""A peer that stops in the middle takes nobody's measurements with it."""

from pathlib import Path

import pytest

from scripts.bench_peers import measured, table
from shareatt_export.benchmark.request import BenchRequest

REQUEST = BenchRequest(Path("dense.gguf"), Path("sa.gguf"), depths=(0, 64), prompt=8, generate=2, rounds=2, threads=1)


class Fake:
    def __init__(self, seconds: float, last_depth: int) -> None:
        self.seconds, self.last_depth, self.depth = seconds, last_depth, 0

    def run_command(self, command: str, **arguments: int) -> list[dict[str, float]]:
        if command == "fill":
            self.depth = arguments["depth"]
            return []
        if self.depth > self.last_depth:
            raise RuntimeError("context too small")
        return [{"all": self.seconds}] * (1 if command == "prefill" else arguments["n"])


def test_a_peer_that_fails_is_left_out_of_all_rows(capsys):
    programs = {"SA": Fake(0.5, 64), "ik_llama.cpp": Fake(0.1, 0)}
    seconds = measured(REQUEST, programs)
    assert list(seconds) == [(what, depth) for depth in (0, 64) for what in ("prefill", "decode")]
    assert all(rounds.keys() == {"SA"} and len(rounds["SA"]) == 2 for rounds in seconds.values())
    assert "ik_llama.cpp is left out: context too small" in capsys.readouterr().err
    assert list(table(seconds))[2:4] == ["| decode at 0 | 2.0 |", "| decode at 64 | 2.0 |"]


def test_our_own_programs_may_not_fail():
    with pytest.raises(RuntimeError, match="context too small"):
        measured(REQUEST, {"SA": Fake(0.5, 0)})
