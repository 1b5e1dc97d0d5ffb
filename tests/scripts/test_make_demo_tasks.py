"""The tasks that scripts/make_demo_tasks.py makes of the held-out text."""

import subprocess
import sys
from pathlib import Path

from shareatt_export.evaluation.tasks import read_tasks
from tests.support import tiny_models

ROOT = Path(__file__).parents[2]


def test_demo_tasks_are_of_the_held_out_text(demo_tasks, tmp_path):
    text = (tiny_models.DEMO / "heldout.txt").read_text()
    lines = {line.strip() for line in text.split("\n")}
    choices, completions = (read_tasks(demo_tasks / name).items for name in ("next-line.jsonl", "repeat.jsonl"))
    assert len(choices) == len(completions) == 200
    for item in choices:
        assert item.prompt + item.choices[item.answer] + "\n" in text and len(set(item.choices)) == 4
        assert set(item.choices) <= lines
        assert max(map(len, item.choices)) - min(map(len, item.choices)) <= 6
    for item in completions:
        before, begun = item.prompt.rsplit("\n", 1)
        assert before in text and begun + item.target in before.split("\n")
        assert sum(line.strip().startswith(begun.strip()) for line in before.split("\n")) == 1
    answers = [item.answer for item in choices]
    assert all(30 < answers.count(i) < 70 for i in range(4))


def test_demo_tasks_are_the_same_each_time(demo_tasks, tmp_path):
    script, text = ROOT / "scripts" / "make_demo_tasks.py", tiny_models.DEMO / "heldout.txt"
    subprocess.run([sys.executable, script, text, tmp_path], check=True)
    for path in demo_tasks.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
