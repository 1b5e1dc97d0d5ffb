"""Reports of the demo model: the JSON that the real commands write."""

import json
import subprocess
import sys
from pathlib import Path

from . import tiny_models

OTHER_TEXT = Path(__file__).parents[2] / "README.md"
SMALL = ["--ctx", "32", "--windows", "2", "-q"]


def _printed(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "shareatt_export", *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_reports(demo_dense: Path, folder: Path) -> None:
    """Write the JSON file of each kind of report, and beside it the page of its command."""
    text, tasks = ["--text", tiny_models.DEMO / "heldout.txt"], folder / "tasks.jsonl"
    tasks.write_text(json.dumps({"prompt": "import", "choices": [" os", " sys"], "answer": 0}) + "\n")
    sa = folder / "sa.gguf"
    _printed(demo_dense, "--spans", "6-9", "-o", sa, "-q")
    _printed("analyze", demo_dense, *text, *SMALL, "--reach", 1, "-o", folder / "analyze")
    search = ["search", demo_dense, *text, "--ctx", 32, "--reach", 2, "--fast", "-q"]
    _printed(*search, "--windows", 2, "--followers", 2, "-o", folder / "layers")
    # a fast search over groups scores half of the windows
    _printed(*search, "--windows", 4, "--unit", "group", "--save", "4%", "-o", folder / "groups")
    size = ["--text", OTHER_TEXT, "--ctx", 256, "--windows", 2, "--drop", "-q", "--json"]
    evaluation = _printed("eval", demo_dense, sa, *text, *size, "--tasks", tasks, "--report", folder / "eval.html")
    (folder / "eval.json").write_text(evaluation)
    size = ["--depths", "0,200", "--prompt", 16, "--generate", 2, "--rounds", 2, "--threads", 1, "-q", "--json"]
    (folder / "bench.json").write_text(_printed("bench", demo_dense, sa, *size, "--report", folder / "bench.html"))


def report_files(folder: Path) -> dict[str, Path]:
    """Return the JSON files that write_reports wrote to `folder`, by their kind."""
    return {
        "analyze": folder / "analyze" / "analysis.json",
        "layers": folder / "layers" / "search.json",
        "groups": folder / "groups" / "search.json",
        "eval": folder / "eval.json",
        "bench": folder / "bench.json",
    }
