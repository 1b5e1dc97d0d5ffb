"""Local tasks for lm-evaluation-harness; without it, the tests of this folder are skipped."""

import json

import pytest
import yaml

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'lm-eval>=0.4.13' accelerate")

TASKS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "completions": {
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "target",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 64},
        "metric_list": [{"metric": "exact_match", "regexes_to_ignore": [r"^\s+", r"\s+$"]}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Local data sets need no hub; without this, their library asks it first. It reads its environment at import."""
    for module in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def local_tasks(demo_tasks, tmp_path_factory):
    """A folder of tasks of 8 items, made of the demo model's tasks and its held-out text; for --include_path."""
    folder = tmp_path_factory.mktemp("local-tasks")
    for name, lines in {
        "choices": (demo_tasks / "next-line.jsonl").read_text().splitlines()[:8],
        "completions": (demo_tasks / "repeat.jsonl").read_text().splitlines()[:8],
        "rolling": [json.dumps({"text": text}) for text in _texts()],
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
        task = {
            "task": f"local_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
            "test_split": "test",
            "target_delimiter": "",
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task | TASKS[name]))
    return folder


def _texts():
    """Texts shorter and longer than the windows that the tests choose, and an odd one."""
    from tests.support import tiny_models

    text = (tiny_models.DEMO / "heldout.txt").read_text()
    return [text[1000 * i : 1000 * i + n] for i, n in enumerate((40, 900, 400, 2000, 10))] + ["é\u2028\n"]
