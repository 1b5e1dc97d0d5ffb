"""Real models, from the export to generated text. scripts/fetch_models.py brings them.

SmolLM2 is tested on every run, the larger ones with --real.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.fetch_models import ASSETS, models_folder

FIT_BYTES = 8_000  # of text to fit with: few, because a window takes a second of Qwen
EVAL = ("--ctx", 256, "--windows", 3, "--no-baselines", "--json")


@dataclass(frozen=True)
class Case:
    """A model, its late span with followers in a tenth of the layers, and how it goes on in a text."""

    name: str
    spans: str
    prompt: str
    continuation: str

    @property
    def mark(self) -> list[pytest.MarkDecorator]:
        return [] if self.name == "smollm2" else [pytest.mark.real]


CASES = (
    Case("smollm2", "25-28", "The capital of France is", "Paris"),
    Case("gemma3", "14-16", "Monday, Tuesday, Wednesday,", "Thursday, Friday"),
    Case("qwen", "23-26", "def add(a, b):\n    return", "a + b"),
)


def fetched(name: str) -> list[Path]:
    """Return the files of an asset. The test fails if they are not fetched."""
    paths = [models_folder() / file for file in ASSETS[name].files]
    if not all(path.is_file() for path in paths):
        pytest.fail(f"{paths[0]} is missing: python scripts/fetch_models.py {name}")
    return paths


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name, marks=case.mark) for case in CASES])
def test_a_late_span(run, built, case, tmp_path):
    """Fits bring the shared model closer to the dense one on text of the same kind, and it still writes sense."""
    (dense,), (prose, held_out) = fetched(case.name), fetched("prose")
    text, plain, fitted = (tmp_path / name for name in ("fit.txt", "plain.gguf", "fitted.gguf"))
    text.write_text(prose.read_text(encoding="utf-8")[:FIT_BYTES], encoding="utf-8")
    for done in (
        run(dense, "--spans", case.spans, "-o", plain),
        run(dense, "--spans", case.spans, "--align", "--refit", "--text", text, "-o", fitted),
        run("verify", fitted, "--against", dense),
    ):
        assert done.status == 0, done.stderr
    scores = json.loads(run("eval", dense, plain, fitted, "--text", held_out, *EVAL).stdout)["scores"]
    kl = [score["kl"]["mean"] for score in scores]
    assert kl[0] == 0 < kl[2] < 0.9 * kl[1] < 1, kl
    arguments = ("run", fitted, "-p", case.prompt, "-n", "6", "--", "--temp", "0", "-no-cnv")
    command = [sys.executable, "-m", "shareatt_export", *map(str, arguments)]
    written = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert case.continuation in written
