"""lm-evaluation-harness gives a GGUF the scores that it gives the same model in transformers."""

import json
import struct

import numpy as np
import pytest
from gguf import GGUFValueType

import shareatt_export
from shareatt_export.errors import ShareattError
from shareatt_export.formats.gguf_header import RawValue
from shareatt_export.formats.weight_types import CACHE_TYPES
from shareatt_export.harness.run import NAME, register
from tests.support import small_gguf, tiny_models

NAMES = ["local_choices", "local_completions", "local_rolling"]


@pytest.fixture(scope="module")
def shared_f32(demo_f32, tmp_path_factory):
    return shareatt_export.export(demo_f32, "6-9", tmp_path_factory.mktemp("shared") / "sa.gguf").files[0]


@pytest.fixture(scope="module")
def evaluate(local_tasks):
    """Return a function that runs the harness in this process and returns its results."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    register()

    def evaluate(kind, names=NAMES, batch_size=4, **arguments):
        tasks = TaskManager(include_path=str(local_tasks), include_defaults=False)
        return lm_eval.simple_evaluate(
            kind, arguments, names, task_manager=tasks, batch_size=batch_size, bootstrap_iters=0
        )

    return evaluate


def answers(results):
    """Return what the model answered, by task and item."""
    samples = results["samples"]
    return {name: [np.array(each["filtered_resps"]).tolist() for each in samples[name]] for name in samples}


def numbers(results, task="local_choices"):
    return np.array([[float(log) for log, _ in item] for item in answers(results)[task]])


@pytest.mark.parametrize("max_length", [512, 150])
def test_scores_are_those_of_transformers(evaluate, demo_f32, max_length):
    """150: contexts are truncated, and texts are cut into several windows."""
    arguments = {"pretrained": str(tiny_models.DEMO), "dtype": "float32", "device": "cpu"}
    theirs = evaluate("hf", max_length=max_length, **arguments)
    ours = evaluate(NAME, model=str(demo_f32), max_length=max_length)
    for name in NAMES:
        mine, others = ours["results"][name], theirs["results"][name]
        for metric in (key for key in mine if "," in key and "stderr" not in key):
            assert mine[metric] == pytest.approx(others[metric], rel=1e-3), (name, metric)
    assert numbers(ours) == pytest.approx(numbers(theirs), rel=1e-3, abs=0.02)
    mine, others = answers(ours), answers(theirs)
    assert [each.strip() for (each,) in mine["local_completions"]] == [
        each.strip() for (each,) in others["local_completions"]
    ]
    assert [float(each) for (each,) in mine["local_rolling"]] == pytest.approx(
        [float(each) for (each,) in others["local_rolling"]], rel=1e-3, abs=0.02
    )


def test_the_command_line_and_eval_agree(run, local_tasks, demo_f32, shared_f32, tmp_path):
    found = {}
    for file in (demo_f32, shared_f32):
        done = run(
            "lm-eval", "run", "--model", NAME, "--model_args", f"model={file},threads=1", "--batch_size", 8, "--tasks",
            "local_choices,local_completions", "--include_path", local_tasks, "--output_path", tmp_path / file.name,
        )  # fmt: skip
        assert done.status == 0 and "local_choices" in done.stdout, done.stderr
        (written,) = (tmp_path / file.name).rglob("results_*.json")
        results = json.loads(written.read_text())
        scores = results["results"]
        found[file] = (
            scores["local_choices"]["acc,none"],
            scores["local_choices"]["acc_norm,none"],
            scores["local_completions"]["exact_match,none"],
        )
    assert results["config"]["source_layers"][5:11] == [5, 6, 6, 6, 6, 10]
    options = [
        argument for name in ("choices", "completions") for argument in ("--tasks", local_tasks / f"{name}.jsonl")
    ]
    data = json.loads(
        run("eval", demo_f32, shared_f32, *options, "--ctx", 64, "--windows", 1, "--no-baselines", "--json").stdout
    )
    for i, file in enumerate((demo_f32, shared_f32)):
        assert found[file] == pytest.approx(tuple(task["models"][i]["accuracy"] for task in data["tasks"]))
    assert found[demo_f32] != found[shared_f32]


@pytest.fixture(scope="module")
def model(demo_f32):
    register()
    from shareatt_export.harness.model import GGUFModel

    return GGUFModel(str(demo_f32), batch_size=2, max_length=40, threads=1)


def requests(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


def test_an_empty_context_is_bos(model):
    (alone,) = model.loglikelihood(requests("loglikelihood", ("", "import os")), True)
    assert [alone] == model._loglikelihood_tokens([(None, [1], model.tok_encode("import os")[1:])], True)
    assert model.generate_until(requests("generate_until", ("", {"max_gen_toks": 3})), True) != [""]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"do_sample": True, "temperature": 0.7}, "generation_kwargs: sampling is not supported; set temperature to 0"),
        ({"temperature": 0.7}, "generation_kwargs: sampling is not supported; set temperature to 0"),
        ({"num_beams": 4}, "generation_kwargs: 'num_beams' is not supported; leave it out"),
        ({"max_gen_toks": 40}, "max_gen_toks: 40; 1 to 39 are possible with max_length 40; change one of the two"),
    ],
)
def test_what_cannot_be_generated_is_refused(model, kwargs, message):
    with pytest.raises(ShareattError) as refused:
        model.generate_until(requests("generate_until", ("import", kwargs)), True)
    assert str(refused.value) == message


@pytest.mark.parametrize(("text", "n"), [(" x" * 41, 41), ("", 0)])
def test_a_continuation_that_cannot_be_scored_is_refused(model, text, n):
    with pytest.raises(ShareattError, match=rf"^a continuation: {n} tokens; 1 to max_length, 40, are possible$"):
        model.loglikelihood(requests("loglikelihood", ("import", text)), True)


CHATML = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_chats_are_rendered_by_the_template_of_the_file(model, demo_f32, tmp_path):
    from shareatt_export.harness.model import GGUFModel

    with pytest.raises(ShareattError, match="tokenizer.chat_template: has no chat template; use plain prompts$"):
        model.apply_chat_template([{"role": "user", "content": "hi"}])
    text = RawValue(GGUFValueType.STRING, struct.pack("<Q", len(CHATML)) + CHATML.encode())
    file = small_gguf.with_metadata(demo_f32, tmp_path / "chat.gguf", tokenizer__chat_template=text)
    chat = GGUFModel(str(file), threads=1)
    user, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes, hi "}
    assert chat.apply_chat_template([user]) == "<|user|>hi</s><|assistant|>"
    assert chat.apply_chat_template([user, answer], add_generation_prompt=False) == "<|user|>hi</s><|assistant|>yes, hi"
    assert chat.chat_template(True) == CHATML and len(chat.tokenizer_name) == 64
    with pytest.raises(ShareattError, match="refuses these messages: no system role$"):
        chat.apply_chat_template([{"role": "system", "content": "be short"}])
    with pytest.raises(ShareattError, match="^--apply_chat_template: 'rag' cannot be chosen; give it without a name$"):
        chat.chat_template("rag")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "model=FILE.gguf is missing"),
        ({"model": "x", "n": 1}, "'n' is not one of model, max_length, threads, gpu_layers, devices, type_k"),
        ({"model": "x", "type_k": "q2"}, f"type_k=q2 is not one of {', '.join(CACHE_TYPES)}"),
        ({"model": "x", "batch_size": 2}, "'batch_size' is an option of its own: --batch_size"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    from shareatt_export.harness.model import GGUFModel

    with pytest.raises(ShareattError) as refused:
        GGUFModel.create_from_arg_obj(arguments, {"batch_size": 1, "device": None})
    assert str(refused.value) == f"--model_args: {message}"


def test_without_the_harness_the_command_says_how_to_get_it(run, monkeypatch):
    monkeypatch.setattr("shareatt_export.harness.run.find_spec", lambda name: None)
    assert run("lm-eval", "ls", "tasks").error == (
        "Error: lm_eval is not installed; pip install 'shareatt-export[lm-eval]'"
    )
