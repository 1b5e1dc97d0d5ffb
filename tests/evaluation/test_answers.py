"""Answers to tasks, compared with llama-perplexity, sentencepiece and sums over whole texts; eval --tasks."""

import json
import re
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from shareatt_export.errors import BadInput
from shareatt_export.evaluation.answers import answer, encode
from shareatt_export.evaluation.batches import context_params
from shareatt_export.evaluation.completions import Prompt, complete
from shareatt_export.evaluation.intervals import sign_test, wilson
from shareatt_export.evaluation.tasks import Choices, Completion, Tasks, read_tasks
from shareatt_export.llamacpp import runtime
from shareatt_export.llamacpp.engine import Context, Model
from tests.support import parity, tiny_models

N_CTX_TRAIN = 512  # context length of the demo model
EXACT = {"type_k": 0, "type_v": 0, "n_threads": 1, "n_threads_batch": 1}  # F32 caches


@pytest.fixture(scope="module", params=["dense", "shared"])
def model(request, demo_dense, shared):
    with Model(parity.lib(), {"dense": demo_dense, "shared": shared}[request.param]) as model:
        yield model


def tasks(*items):
    return Tasks(Path("tasks.jsonl"), "", items)


def write(path, *lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


CHOICES = {"prompt": "import", "choices": [" os", " x"], "answer": 0}


@pytest.mark.parametrize("prompt", ["def f(x):\n    ", "import", "class ", ""])
def test_prompt_and_choice_are_split_where_the_prompt_alone_ends(model, prompt):
    pieces = sentencepiece.SentencePieceProcessor(str(tiny_models.DEMO / "tokenizer.model"))
    texts = ("return x", " os.path", "  # é")
    (encoded,) = encode(model, tasks(Choices(1, prompt, texts, 0)), N_CTX_TRAIN)
    kept = pieces.encode(prompt.rstrip())
    assert encoded.prompt == [1, *kept]
    assert encoded.choices == tuple(pieces.encode(prompt + text)[len(kept) :] for text in texts)


def test_a_prompt_that_is_completed_keeps_its_white_space(model):
    encoded = encode(model, tasks(Completion(1, "x =\n  ", "1"), Completion(2, "<s>x =\n  ", "1")), N_CTX_TRAIN)
    expected = [1, *model.tokenize("x =\n  ")]
    assert [item.prompt for item in encoded] == [expected, expected]  # one BOS, also if the text contains it


def test_a_choice_that_melts_into_the_prompt(model):
    with pytest.raises(BadInput, match=r"^tasks\.jsonl: line 3: choices: number 1 adds no token to the prompt$"):
        encode(model, tasks(Choices(3, "pr", ("x = 1", "int"), 0)), N_CTX_TRAIN)


def test_items_that_do_not_fit_the_model(model):
    n = len(model.tokenize("x " * 100)) + 1
    fits = Completion(1, "x " * 100, "1", max_tokens=512 - n)
    encode(model, tasks(fits), N_CTX_TRAIN)
    longer = Completion(2, "x " * 100, "1", max_tokens=513 - n)
    what = f"prompt: {n} tokens, 513 with max_tokens {513 - n}; the model's context is 512"
    with pytest.raises(BadInput, match=rf"^tasks\.jsonl: line 2: {re.escape(what)}$"):
        encode(model, tasks(fits, longer), N_CTX_TRAIN)
    with pytest.raises(BadInput, match=r"line 1: prompt: 2 tokens, \d+ with its longest choice; the model's"):
        encode(model, tasks(Choices(1, "x", (" y", " z" * 600), 0)), N_CTX_TRAIN)


def right(model, *items):
    sheet = encode(model, tasks(*items), N_CTX_TRAIN)
    with Context(model, True, **EXACT, **context_params(N_CTX_TRAIN)) as context:
        return answer(context, sheet)


def test_accuracy_is_of_the_sum_and_of_the_sum_per_character(model):
    """acc_norm divides by characters, not bytes: éèüöä has five characters and ten bytes, which matters here."""
    mock, odd = (" os", " unittest.mock as mock"), (" qzjxkvw", "éèüöä")
    found = right(model, *(Choices(i, "import", mock, i) for i in (0, 1)), Choices(2, "x = 'caf", odd, 0))
    assert found["acc"] == {0: True, 1: False, 2: False}
    per_character = model.source_layers() == tuple(range(model.n_layer))  # true for the dense model only
    assert found["acc_norm"] == {0: False, 1: True, 2: per_character}


def as_upstream(items):
    """Return the file format of llama-perplexity --multiple-choice, which puts a space between question and answer."""

    def text(content):
        return struct.pack("<I", len(content)) + content

    parts = []
    for item in items:
        answers = b"".join(text(choice[1:].encode()) for choice in item.choices)
        labels = [int(i == item.answer) for i in range(len(item.choices))]
        block = struct.pack("<I", len(labels)) + answers + struct.pack(f"<{len(labels)}i", *labels)
        parts.append(text(item.prompt.encode()) + block + block)
    return struct.pack("<I", len(items)) + bytes(4 * len(items)) + b"".join(parts)


def test_accuracy_is_that_of_llama_perplexity(model, demo_tasks, tmp_path):
    """llama-perplexity takes the mean over tokens, so each choice here has one token."""
    words = sorted(set(re.findall(r" [a-z]{3,12}", (tiny_models.DEMO / "heldout.txt").read_text())))
    words = [word for word in words if len(model.tokenize(f"1{word}")) == len(model.tokenize("1")) + 1]
    items = []
    for i, item in enumerate(read_tasks(demo_tasks / "next-line.jsonl").items[:24]):
        choices = tuple(words[(37 * i + 11 * j) % len(words)] for j in range(3))
        items.append(Choices(i + 1, item.prompt.rstrip(), choices, i % 3))
    path = tmp_path / "tasks.bin"
    path.write_bytes(as_upstream(items + items))  # llama-perplexity may lose the last lines of its log
    command = [runtime.tool("llama-perplexity"), "-m", model.path, "--multiple-choice", "-bf", path, "-c", 1024]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    running = re.findall(r"^(\d+)\t([0-9.]+)$", done.stdout + done.stderr, re.MULTILINE)[: len(items)]
    counts = [round(int(n) * float(percent) / 100) for n, percent in running]
    theirs = [bool(step) for step in np.diff([0, *counts])]
    assert list(right(model, *items)["acc"].values()) == theirs
    assert 0 < sum(theirs) < len(theirs)


PROMPT = "    def __repr__(self):\n"


def test_white_space_around_the_target_does_not_count(model):
    (encoded,) = encode(model, tasks(Completion(1, PROMPT, "x")), N_CTX_TRAIN)
    with Context(model, True, **EXACT, **context_params(64)) as context:
        ((_, line),) = complete(context, [Prompt(tuple(encoded.prompt), ("\n\n",), 16)])
    items = [
        Completion(1, PROMPT, f"  {line.strip()} ", ("\n\n",), 16),
        Completion(2, PROMPT, line.strip()[:-1], ("\n\n",), 16),
        Completion(3, PROMPT, f"{line.strip()}!", ("\n\n",), 16),
    ]
    assert right(model, *items) == {"exact_match": {1: True, 2: False, 3: False}}


def test_the_command(run, demo_dense, shared, demo_tasks, tmp_path):
    some = {name: (demo_tasks / f"{name}.jsonl").read_text().splitlines()[:12] for name in ("next-line", "repeat")}
    mixed = write(tmp_path / "mixed.jsonl", *some["next-line"], *some["repeat"])
    only = write(tmp_path / "only.jsonl", *some["repeat"])
    arguments = (
        "eval",
        demo_dense,
        shared,
        "--ctx",
        64,
        "--windows",
        1,
        "--tasks",
        mixed,
        "--tasks",
        only,
        "--no-weights",
    )
    data = json.loads(run(*arguments, "--json").stdout)
    metrics = [(Path(task["file"]).name, task["metric"], task["items"]) for task in data["tasks"]]
    assert metrics == [(mixed.name, name, 12) for name in ("acc", "acc_norm", "exact_match")] + [
        (only.name, "exact_match", 12)
    ]
    with Model(parity.lib(), demo_dense) as dense, Model(parity.lib(), shared) as other:
        theirs, ours = (right(each, *read_tasks(mixed).items) for each in (dense, other))
    for task in data["tasks"][:3]:
        before, after = theirs[task["metric"]], ours[task["metric"]]
        dense, sa, _ = task["models"]
        assert [each["name"] for each in task["models"]] == ["dense", "sa.gguf", "dense, K cache q8_0"]
        assert dense["accuracy"] == sum(before.values()) / 12 and sa["accuracy"] == sum(after.values()) / 12
        assert sa["lost_lines"] == [line for line in before if before[line] and not after[line]]
        assert sa["won_lines"] == [line for line in before if after[line] and not before[line]]
        assert dense["lost_lines"] == dense["won_lines"] == [] and dense["p"] == 1
        assert sa["p"] == sign_test(len(sa["lost_lines"]), len(sa["won_lines"]))
        assert tuple(sa["ci95"]) == wilson(sum(after.values()), 12)
    assert any(task["models"][1]["lost_lines"] for task in data["tasks"])
    shown = run(*arguments, "--no-baselines").stdout
    rows = [" ".join(line.split()) for line in shown.splitlines()]
    n = sum(theirs["acc"].values())
    assert any(row.startswith(f"mixed.jsonl, acc dense {n}/12 {100 * n / 12:.1f} %") for row in rows)


def test_a_bad_file_is_refused_before_anything_is_measured(run, demo_dense, shared, tmp_path):
    path = write(tmp_path / "tasks.jsonl", CHOICES | {"answer": 5})
    done = run("eval", demo_dense, shared, "--tasks", path)
    assert done.error == f"Error: {path}: line 1: answer: 5; the choices are 0 to 1"
    assert "evaluating" not in done.stderr
    path = write(tmp_path / "long.jsonl", CHOICES, CHOICES | {"prompt": "x " * 600})
    done = run("eval", demo_dense, shared, "--tasks", path)
    assert done.error.startswith(f"Error: {path}: line 2: prompt: ") and "evaluating" not in done.stderr
