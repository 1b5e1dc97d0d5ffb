"""`shareatt-export heal`: the folder that it writes, resuming, its refusals, and runs that are interrupted."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import shareatt_export
from shareatt_export.errors import BadInput, ShareattError
from shareatt_export.exporting import convert
from shareatt_export.formats.texts import read_text
from shareatt_export.healing import checkpoint_model, heal, saved_state, step_size, train
from shareatt_export.healing.checkpoint_model import RECORD
from shareatt_export.healing.distill import Distiller
from shareatt_export.healing.job import planned
from shareatt_export.healing.request import HealRequest
from shareatt_export.healing.sharing import Sharing
from shareatt_export.healing.trained_weights import TrainedWeights
from shareatt_export.system.progress import silent
from tests.support import conversions, model_families, parity, tiny_models

SPANS = "2-4"
SMALL = {"--text": tiny_models.DEMO / "LICENSE", "--ctx": 16, "--batch": 2, "--dtype": "f32"}
OPTIONS = [str(item) for pair in SMALL.items() for item in pair]


# ---------------------------------------------------------------- the folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heal") / "model"
    tiny_models.save(tiny_models.build(2).to(torch.bfloat16), folder)
    (folder / "code.bin").write_bytes(b"pickle")
    (folder / "extra.txt").write_text("kept")
    return folder


@pytest.fixture(scope="module")
def healed(model: Path) -> tuple[Path, dict]:
    """The folder after three steps, and the record in it."""
    out = model.parent / "healed"
    heal.heal(planned(request(model, out, steps=3)))
    return out, json.loads((out / RECORD).read_text())


def test_only_what_is_trained_changes(model, healed):
    out, said = healed
    before, after = (load_file(folder / "model.safetensors") for folder in (model, out))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and after[min(changed)].dtype == torch.bfloat16
    assert changed == set(said["trained"]) == {
        f"model.layers.{name}.weight"
        for name in ("2.self_attn.q_proj", "2.self_attn.k_proj", "3.self_attn.v_proj", "3.self_attn.o_proj",
                     "4.self_attn.v_proj", "4.self_attn.o_proj")
    }  # fmt: skip
    names = {path.name for path in model.iterdir()}
    assert {path.name for path in out.iterdir()} == names - {"code.bin"} | {RECORD}
    for name in names - {"code.bin", "model.safetensors"}:
        assert (out / name).read_bytes() == (model / name).read_bytes(), name
    assert sorted(path.name for path in model.parent.iterdir()) == ["healed", "model"]


def test_the_record(healed):
    said = healed[1]
    assert [point["tokens"] for point in said["held_out"]] == [0, 32, 64, 96] and said["tokens"] == 96
    assert said["n_trained"] == 3 * 128 * (128 + 64) and said["spans"] == SPANS
    assert said["text"] == [
        {"name": str(tiny_models.DEMO / "LICENSE"), "sha256": read_text(tiny_models.DEMO / "LICENSE").sha256}
    ]


def test_the_demo_models_loss_falls_on_text_it_was_not_trained_with(tmp_path):
    asked = request(tiny_models.DEMO, tmp_path / "out", spans="6-9", n_ctx=128, steps=5)
    first, *_, last = heal.heal(planned(asked)).result.curve
    assert last.scores.kl < 0.9 * first.scores.kl
    assert first.scores.nll_teacher == last.scores.nll_teacher < last.scores.nll < first.scores.nll


def test_the_exported_model_is_the_student(model, healed, built, tmp_path):
    """The runtime with the healed folder computes what the student computes with the weights of that folder."""
    out, said = healed
    (file,) = shareatt_export.export(out, SPANS, tmp_path / "sa.gguf", outtype="f32").files
    tensors = load_file(out / "model.safetensors")
    job = planned(HealRequest(model, SPANS, None, dtype="f32"))
    initial = {name: tensors[name].float().numpy() for name in said["trained"]}
    teacher = job.model.load(torch.float32)
    student = Distiller(teacher, Sharing((0, 1, 2, 2, 2, 5, 6, 7)), TrainedWeights(teacher, job.parts, initial=initial))
    tokens = torch.from_numpy(parity.TOKENS[0])[None]
    with torch.no_grad():
        expected = student.as_student(tokens, lambda outputs: outputs.logits)[0].numpy()
    assert parity.nmse(parity.logits(file), expected) < parity.TOLERANCE["f32"]
    assert parity.nmse(teacher(tokens).logits[0].detach().numpy(), expected) > 1e-2


N_Q, N_KV = model_families.N_HEAD * model_families.HEAD_DIM, model_families.N_HEAD_KV * model_families.HEAD_DIM
# the name of the fused matrix, and whether each of its rows belongs to V
FUSED = {
    "phi3": ("self_attn.qkv_proj", [False] * (N_Q + N_KV) + [True] * N_KV),
    "gpt_neox": ("attention.query_key_value", ([False] * 64 + [True] * 32) * model_families.N_HEAD),
}


@pytest.mark.parametrize("family", FUSED)
def test_of_a_fused_matrix_only_its_part_changes(family, tmp_path):
    """Rows of Q and K in the source, rows of V in the followers."""
    folder, out = model_families.save_with_bpe(model_families.build(family), tmp_path / "model"), tmp_path / "out"
    heal.heal(planned(request(folder, out, steps=2)))
    before, after = (load_file(path / "model.safetensors") for path in (folder, out))
    name, is_v = FUSED[family]
    for layer, expected in ((2, ~torch.tensor(is_v)), (3, torch.tensor(is_v)), (4, torch.tensor(is_v))):
        key = next(key for key in before if key.endswith(f"layers.{layer}.{name}.weight"))
        assert torch.equal((before[key] != after[key]).any(1), expected), key
    parts = {key.rpartition("layers.")[2].split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert parts == {"2", "3", "4"}


def request(model: Path, out: Path | None, **changes: object) -> HealRequest:
    texts = (read_text(tiny_models.DEMO / "LICENSE"),)
    asked = HealRequest(model, SPANS, out, texts, n_ctx=16, batch=2, steps=6, dtype="f32")
    return replace(asked, **changes)


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_resumed_is_bit_equal_to_uninterrupted(model, tmp_path, monkeypatch, method):
    monkeypatch.setattr(train, "SAVE_SECONDS", 0)
    monkeypatch.setattr(train, "SAVE_SHARE", 0)
    whole, out = tmp_path / "whole", tmp_path / "out"
    heal.heal(planned(request(model, whole, method=method)))
    asked = request(model, out, method=method)

    def interrupt(what: str, fraction: float | None) -> None:
        if fraction is not None and fraction >= 3 / 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heal.heal(planned(asked), interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.healing", "whole"]
    with pytest.raises(ShareattError, match="an interrupted healing; --resume goes on with it, --force begins again"):
        heal.heal(planned(asked))
    with pytest.raises(BadInput, match="begun with seed 0, not 1"):
        heal.heal(planned(replace(asked, seed=1, resume=True)))
    done = heal.heal(planned(replace(asked, resume=True)))
    assert weights_of(out) == weights_of(whole) != weights_of(model)
    assert [point.step for point in done.result.curve] == [0, 1, 2, 3, 4, 5, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
    with pytest.raises(BadInput, match="no interrupted healing to --resume"):
        heal.heal(planned(replace(asked, resume=True, force=True)))


def test_measuring_that_takes_long_is_left_out_but_for_the_ends(model, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "MEASURE_SECONDS", 0)
    monkeypatch.setattr(train, "MEASURE_SHARE", 1e9)
    curve = heal.heal(planned(request(model, tmp_path / "out"))).result.curve
    assert [point.step for point in curve] == [0, 6]


def test_same_seed_same_bytes_other_seed_other_bytes(model, tmp_path):
    made = []
    for i, (seed, checkpointing) in enumerate([(0, False), (0, True), (1, False)]):
        asked = request(model, tmp_path / str(i), seed=seed, steps=2, checkpointing=checkpointing)
        heal.heal(planned(asked))
        made.append(weights_of(tmp_path / str(i)))
    assert made[0] == made[1] != made[2]


def test_it_begins_where_a_fit_ended(model, tmp_path, built):
    """With almost no training, the healed model equals the aligned and refitted one."""
    dense = conversions.convert(model, tmp_path / "dense.gguf")
    fitted = tmp_path / "fitted.gguf"
    shareatt_export.export(dense, SPANS, fitted, align=True, refit=True, text=tiny_models.DEMO / "LICENSE")
    asked = request(model, tmp_path / "out", spans=None, begin=fitted, steps=1, learning_rate=1e-9)
    heal.heal(planned(asked))
    ours = shareatt_export.export(tmp_path / "out", SPANS, tmp_path / "healed.gguf", outtype="f32").files[0]
    plain = shareatt_export.export(dense, SPANS, tmp_path / "plain.gguf").files[0]
    assert parity.nmse(parity.logits(ours), parity.logits(fitted)) < 1e-6
    assert parity.nmse(parity.logits(ours), parity.logits(plain)) > 1e-2


def test_a_beginning_that_does_not_fit_is_refused(model, tmp_path, built):
    dense = conversions.convert(model, tmp_path / "dense.gguf")
    plain = shareatt_export.export(dense, SPANS, tmp_path / "plain.gguf").files[0]
    options = {"spans": None, "steps": 1}
    for file, message in ((plain, "is not there; --from takes what --align"), (dense, "shares no attention")):
        with pytest.raises(BadInput, match=message):
            planned(request(model, tmp_path / "out", begin=file, **options))
    for spans, begin in ((None, None), (SPANS, plain)):
        with pytest.raises(ShareattError, match="one of --spans and --from"):
            planned(request(model, tmp_path / "out", spans=spans, begin=begin))
    torch.manual_seed(77)
    other = tiny_models.build(2)
    for weight in other.parameters():
        weight.data = weight.data[torch.randperm(len(weight))] if weight.ndim == 2 else weight.data
    stranger = conversions.convert(tiny_models.save(other, tmp_path / "other"), tmp_path / "other.gguf")
    fitted = tmp_path / "fitted.gguf"
    shareatt_export.export(stranger, SPANS, fitted, align=True, text=tiny_models.DEMO / "LICENSE")
    with pytest.raises(BadInput, match=r"blk\.2\.attn_v\.weight.*was not made from this checkpoint"):
        heal.heal(planned(request(model, tmp_path / "out", begin=fitted, **options)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("force", [False, True])
def test_what_fails_in_writing_leaves_what_was_there_and_is_not_trained_again(
    model, healed, tmp_path, monkeypatch, force
):
    out = tmp_path / "out"
    if force:
        shutil.copytree(healed[0], out)
    copy_with = checkpoint_model.copy_with

    def fail(*arguments: object) -> None:
        copy_with(*arguments)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_model, "copy_with", fail)
    asked = request(model, out, steps=1, force=force)
    with pytest.raises(ShareattError, match="cannot be written: No space left on device"):
        heal.heal(planned(asked))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"] * force + ["out.healing"]
    if force:
        assert weights_of(out) == weights_of(healed[0])
    monkeypatch.setattr(checkpoint_model, "copy_with", copy_with)
    monkeypatch.setattr(Distiller, "backward", None)
    heal.heal(planned(replace(asked, resume=True)))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert weights_of(out) not in (weights_of(model), weights_of(healed[0]))


def test_killed_there_is_no_output(model, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "shareatt_export", "heal", model, "--spans", SPANS, "-o", out, "--minutes", "5"]
    child = subprocess.Popen([*map(str, command), *OPTIONS], stderr=subprocess.PIPE, text=True)
    assert any("healing" in line for line in child.stderr)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not out.exists() and not list(tmp_path.glob("*.safetensors"))


# ---------------------------------------------------------------- the command line


def test_other_commands_do_without_torch():
    script = "import sys; from shareatt_export.cli import main; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_dry_run_writes_nothing(run, model):
    before = sorted(model.parent.iterdir())
    done = run("heal", model, "--spans", "2-3,5:7", "--dry-run", *OPTIONS)
    assert done.status == 0 and "layer 5 computes; layer 7 reuses its attention weights" in done.stdout
    n = 4 * 128 * (128 + 64)
    assert f"trains {n:,} numbers: 2 x q_proj.weight, 2 x k_proj.weight, 2 x v_proj.weight" in done.stdout
    said = json.loads(run("heal", model, "--spans", SPANS, "--dry-run", "--json", "--method", "lora").stdout)
    assert said["trained"][2] == {"name": "model.layers.3.self_attn.v_proj.weight", "shape": [64, 128]}
    assert said["n_trained"] == 16 * 3 * (128 + 128 + 64 + 128)
    assert sorted(model.parent.iterdir()) == before


def test_the_command_says_how_to_export(run, model, tmp_path):
    out = tmp_path / "out"
    done = run("heal", model, "--spans", "3-4", "--source", "previous", "-o", out, "--steps", "1", *OPTIONS)
    assert (done.status, done.stdout) == (0, f"{out}\n"), done.stderr
    assert f"shareatt-export {out} --spans 2-4 -o {out}.gguf" in done.stderr
    assert "perplexity" in done.stderr
    done = run("heal", model, "--spans", SPANS, "-o", out, "--steps", "1", "--json", "--force", "-q", *OPTIONS)
    record = json.loads((out / RECORD).read_text())
    assert json.loads(done.stdout) == {"output": str(out), **record} and done.stderr == ""


@pytest.mark.parametrize(("rate", "worse"), [("1", True), ("1e-5", False)])
def test_the_command_says_that_the_model_is_worse(run, model, tmp_path, rate, worse):
    done = run("heal", model, "--spans", SPANS, "-o", tmp_path / "out", "--steps", "2", "--lr", rate, *OPTIONS)
    assert done.status == 0 and ("worse than before healing" in done.stderr) == worse, done.stderr


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_learning_rate_is_the_step_that_lowers_the_loss_most(model, tmp_path, method):
    job = planned(request(model, tmp_path / "out", spans=SPANS, method=method))
    distiller = heal._distiller(job)
    tokens = job.model.windows(job.texts, 16, silent).batch(0, 2, 0)
    leaves = distiller.weights.leaves
    before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    rate = step_size.measured_rate(distiller, tokens)
    assert all(torch.equal(leaf, before[name]) and leaf.grad is None for name, leaf in leaves.items())
    distiller.backward(tokens)

    def loss_after(step: float) -> float:
        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf.copy_(before[name] - step * leaf.grad.sign())
        return distiller.loss(tokens)

    assert loss_after(rate) < 0.98 * loss_after(0) and loss_after(rate) < min(
        loss_after(rate / 3), loss_after(3 * rate)
    )


def test_the_learning_rate_that_is_asked_for(model, tmp_path):
    done = heal.heal(planned(request(model, tmp_path / "out", spans=SPANS, steps=1, learning_rate=1e-5)))
    assert done.learning_rate == heal.record(done)["learning_rate"] == 1e-5


def config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def save_family(folder: Path, kind: str, **fields: object) -> None:
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **tiny_models.shape(2, 32), **fields))
    made.save_pretrained(folder)
    (folder / "extra.txt").write_text("some text " * 99)


def drop_tensor(folder: Path) -> None:
    """Rename a tensor in the JSON header of a safetensors file, with a name of the same length."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b"3.self_attn.v_proj", b"3.self_attn.u_proj"))


REFUSED = {
    "fused": (
        lambda f: save_family(f, "gpt_bigcode"),
        [],
        "Q, K and V are one matrix (transformer.h.0.attn.c_attn), which heal cannot train in part",
    ),
    "own attention": (
        lambda f: save_family(f, "gptj", n_layer=8, rotary_dim=16),
        ["--ctx", "8"],
        "does not use transformers' att",
    ),
    "encoder": (
        lambda f: config(f, architectures=["BertForMaskedLM"]),
        [],
        "architectures: 'BertForMaskedLM': heal tak",
    ),
    "unknown": (lambda f: config(f, model_type="martian"), [], "config.json: transformers does not know it"),
    "quantised": (
        lambda f: config(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        [],
        "quantization_conf",
    ),
    "code": (
        lambda f: (f / "modeling.py").touch(),
        [],
        "brings code of its own (modeling.py), which heal does not run",
    ),
    "pickles": (lambda f: (f / "model.safetensors").rename(f / "model.bin"), [], "has only pickle weights"),
    "missing tensor": (drop_tensor, [], "no tensor 'model.layers.3.self_attn.v_proj.weight'"),
    "truncated": (lambda f: (f / "model.safetensors").write_bytes(b"abc"), [], "header length"),
    "spans": (lambda f: None, ["--spans", "6-9"], "layer 8 is out of range; this model has layers 0-7"),
    "context": (lambda f: None, ["--ctx", "1024"], "--ctx 1024: the model takes 512 tokens"),
    "device": (lambda f: None, ["--device", "cuda"], "--device cuda: torch finds no such device"),
    "short text": (
        lambda f: (f / "extra.txt").write_text("a"),
        ["--ctx", "512"],
        "too short: healing takes two windows",
    ),
    "output exists": (lambda f: (f.parent / "out").mkdir(), [], "out: exists already; use --force to replace it"),
    "not ours": (lambda f: (f.parent / "out").mkdir(), ["--force"], "is not a folder with a shareatt_heal.json"),
    "no parent": (lambda f: None, ["-o", "/nowhere/out"], "the folder /nowhere does not exist"),
    "within": (lambda f: None, ["-o", "model/out"], "is the input, is inside it or contains it"),
    "nothing to resume": (lambda f: None, ["--resume"], "out.healing: no interrupted healing to --resume"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(run, model, tmp_path, monkeypatch, case):
    if case == "device" and torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    spoil, options, message = REFUSED[case]
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    spoil(folder)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = run("heal", "model", "--spans", SPANS, "-o", "out", "--text", "model/extra.txt", "--steps", "1", *options)
    assert done.status == 1 and message in done.error, done.stderr
    assert done.stdout == "" and sorted(tmp_path.rglob("*")) == before


def test_without_torch_it_is_refused(run, model, tmp_path, monkeypatch):
    asked = ["--spans", SPANS, "-o", tmp_path / "out"]
    monkeypatch.setattr(convert, "find_spec", lambda name: None)
    assert "torch is needed to read Hugging Face models; pip install" in run("heal", model, *asked).error
    done = run("heal", model, "--spans", SPANS)
    assert done.status == 2 and "Missing option '-o'" in done.stderr


def test_a_state_of_another_program_is_refused(model, tmp_path):
    folder = saved_state.folder_of(tmp_path / "out")
    folder.mkdir()
    (folder / saved_state.FILE).write_bytes(b"something else")
    (folder / "mine").touch()
    asked = request(model, tmp_path / "out", steps=1)
    with pytest.raises(BadInput, match="state.pt: cannot be read"):
        heal.heal(planned(replace(asked, resume=True)))
    heal.heal(planned(replace(asked, force=True)))
    assert [path.name for path in folder.iterdir()] == ["mine"]
