"""`shareatt-export heal` of a GGUF: weights read into transformers, the SA GGUF that it writes, and its refusals."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import shareatt_export
from shareatt_export.errors import BadInput, ShareattError, Unsupported, VerifyFailed
from shareatt_export.exporting.verify import verify
from shareatt_export.formats.gguf_header import Header
from shareatt_export.formats.gguf_keys import KEY_FIT_TENSORS, KEY_HEAL
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.formats.tensor_copies import read_f32
from shareatt_export.formats.texts import read_text
from shareatt_export.healing import gguf_weights, heal, train
from shareatt_export.healing.gguf_weights import Layout
from shareatt_export.healing.job import planned
from shareatt_export.healing.request import HealRequest
from tests.support import model_families, parity, tiny_models
from tests.support.model_families import FAMILIES

# families of transformers whose GGUF can be healed, and what is trained of the fused ones
READ = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "starcoder2", "stablelm", "nemotron")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, parity.Case]:
    """Cases of families, made when a test asks for one."""

    class Cases(dict):
        def __missing__(self, family: str) -> parity.Case:
            self[family] = model_families.make_case(family, tmp_path_factory.mktemp(family))
            return self[family]

    return Cases()


def request(dense: Path, out: Path | None, spans: str | None, **changes: object) -> HealRequest:
    texts = (read_text(tiny_models.DEMO / "LICENSE"),)
    asked = HealRequest(dense, spans, out, texts, n_ctx=32, batch=2, steps=2, dtype="f32")
    return replace(asked, **changes)


def tensor_bytes(header: Header) -> dict[str, bytes]:
    data = header.path.read_bytes()
    return {info.name: data[info.offset : info.offset + info.n_bytes] for info in header.tensors.values()}


@pytest.mark.parametrize("family", READ)
def test_the_weights_of_a_gguf_are_those_of_its_checkpoint(family, cases, built):
    case = cases[family]
    model = planned(request(case.dense, None, FAMILIES[family].spans)).model.load(torch.float32)
    for name, weight in case.torch_model.named_parameters():
        distance = (model.get_parameter(name) - weight).abs().max()
        assert distance < 1e-6, name  # norms of which the converter adds 1 are rounded
    tokens = torch.from_numpy(parity.TOKENS[:1])
    with torch.no_grad():
        assert parity.nmse(model(tokens).logits[0].numpy(), model_families.reference(case)) < parity.TOLERANCE["f32"]


@pytest.mark.parametrize("family", READ)
def test_the_file_computes_what_the_student_computed(family, cases, tmp_path, built):
    """The last scores in torch are the runtime's with the written file, in which only trained tensors changed."""
    case, out = cases[family], tmp_path / "out.gguf"
    done = heal.heal(planned(request(case.dense, out, FAMILIES[family].spans, train_mlp=True, learning_rate=3e-2)))
    first, *_, last = done.result.curve
    assert done.written.kl.value == pytest.approx(last.scores.kl, rel=1e-2)
    assert done.written.nll.value == pytest.approx(last.scores.nll, rel=1e-3)
    assert abs(first.scores.kl - last.scores.kl) > 0.05 * first.scores.kl
    plain = shareatt_export.export(case.dense, FAMILIES[family].spans, tmp_path / "plain.gguf").files[0]
    before, after = (tensor_bytes(read_header(path)) for path in (plain, out))
    changed = {name for name in before if before[name] != after[name]}
    assert before.keys() == after.keys() and changed == set(read_header(out).value(KEY_FIT_TENSORS))
    assert verify(out, case.dense).n_tensors == len(after)


def test_of_a_fused_tensor_the_rows_of_v_stay_the_sources(cases, tmp_path, built):
    out, dense = tmp_path / "out.gguf", cases["phi3"].dense
    heal.heal(planned(request(dense, out, "2-4")))
    before, after = (read_f32(read_header(path).tensors["blk.2.attn_qkv.weight"]) for path in (dense, out))
    n_v = model_families.N_HEAD_KV * model_families.HEAD_DIM
    assert np.array_equal(before[-n_v:], after[-n_v:]) and not (before[:-n_v] == after[:-n_v]).all(1).any()
    assert "blk.3.attn_v.weight" in read_header(out).value(KEY_FIT_TENSORS)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in Q8_0."""
    return parity.make_case("GQA", "q8_0", tmp_path_factory.mktemp("dense")).dense


SPANS = "2-4"


def test_a_tensor_keeps_its_type_and_the_student_has_seen_its_rounding(dense, tmp_path, built):
    out = tmp_path / "out.gguf"
    done = heal.heal(planned(request(dense, out, SPANS, learning_rate=1e-2)))
    types = [{name: info.type for name, info in read_header(path).tensors.items()} for path in (dense, out)]
    assert types[1].items() <= types[0].items()
    assert done.written.kl.value == pytest.approx(done.result.curve[-1].scores.kl, rel=0.05)
    record = json.loads(read_header(out).text(KEY_HEAL))
    assert record["text"][0]["name"] == "LICENSE" and record["tokens"] == 2 * 2 * 32 and "seconds" not in record


def test_verify_sees_a_changed_bit_of_a_healed_tensor_and_of_any_other(dense, tmp_path, built):
    out = tmp_path / "out.gguf"
    heal.heal(planned(request(dense, out, SPANS)))
    tensors = read_header(out).tensors
    for name, message in [("blk.2.attn_q.weight", "a fitted tensor is not what"), ("blk.2.attn_v.weight", "differ")]:
        data = bytearray(out.read_bytes())
        data[tensors[name].offset + 7] ^= 1
        bad = tmp_path / "bad.gguf"
        bad.write_bytes(data)
        with pytest.raises(VerifyFailed, match=message):
            verify(bad, dense)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_resumed_is_bit_equal_to_uninterrupted(dense, tmp_path, monkeypatch, built, method):
    monkeypatch.setattr(train, "SAVE_SECONDS", 0)
    monkeypatch.setattr(train, "SAVE_SHARE", 0)
    whole, out = tmp_path / "whole.gguf", tmp_path / "out.gguf"
    options = {"steps": 4, "method": method, "learning_rate": 1e-2}
    heal.heal(planned(request(dense, whole, SPANS, **options)))

    def interrupt(what: str, fraction: float | None) -> None:
        if fraction is not None and fraction >= 0.5:
            raise KeyboardInterrupt

    asked = request(dense, out, SPANS, **options)
    with pytest.raises(KeyboardInterrupt):
        heal.heal(planned(asked), interrupt)
    assert not out.exists()
    heal.heal(planned(replace(asked, resume=True)))
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "whole.gguf"]


def test_it_begins_where_a_fit_or_a_healing_ended(dense, tmp_path, built):
    fitted, first, second = (tmp_path / f"{name}.gguf" for name in ("fitted", "first", "second"))
    shareatt_export.export(dense, SPANS, fitted, align=True, refit=True, text=tiny_models.DEMO / "LICENSE")
    still = {"steps": 1, "learning_rate": 1e-12}
    heal.heal(planned(request(dense, first, None, begin=fitted, **still)))
    assert parity.nmse(parity.logits(first), parity.logits(fitted)) < 1e-4
    heal.heal(planned(request(dense, second, None, begin=first, learning_rate=1e-2)))
    third = tmp_path / "third.gguf"
    heal.heal(planned(request(dense, third, None, begin=second, **still)))
    assert parity.nmse(parity.logits(third), parity.logits(second)) < 1e-4
    assert parity.nmse(parity.logits(third), parity.logits(fitted)) > 1e-3
    assert read_header(third).text("shareatt.fit") == "align,refit,heal"
    verify(third, dense)


def test_what_transformers_computes_otherwise_is_not_trained(dense, tmp_path, monkeypatch, built):
    monkeypatch.setitem(gguf_weights.LAYOUTS, "llama", Layout())
    with pytest.raises(Unsupported, match=r"transformers computes other logits than the runtime \(KL "):
        heal.heal(planned(request(dense, tmp_path / "out.gguf", SPANS)))
    assert list(tmp_path.iterdir()) == []


def test_refused(dense, cases, tmp_path, built):
    out = tmp_path / "out.gguf"
    shared = shareatt_export.export(dense, SPANS, tmp_path / "plain.gguf").files[0]
    for model, message in [
        (shared, "shares attention already; heal the dense GGUF"),
        (cases["olmo2"].dense, "does not read the weights of 'olmo2' from a GGUF"),
        (tmp_path / "none.gguf", "no such file or folder"),
    ]:
        with pytest.raises(ShareattError, match=message):
            planned(request(model, out, SPANS))
    out.touch()
    with pytest.raises(ShareattError, match="exists already; use --force"):
        planned(request(dense, out, SPANS))
    with pytest.raises(BadInput, match="was made from another dense file"):
        heal.heal(planned(request(cases["llama"].dense, tmp_path / "other.gguf", None, begin=shared)))


def test_the_command(run, dense, tmp_path, built):
    out = tmp_path / "out.gguf"
    options = ["--text", tiny_models.DEMO / "LICENSE", "--ctx", 32, "--steps", 1]
    done = run("heal", dense, "--spans", SPANS, "-o", out, *options)
    assert (done.status, done.stdout) == (0, f"{out}\n"), done.stderr
    assert "the file in the runtime, same windows: perplexity" in done.stderr
    assert "healed with 64 tokens" in run("inspect", out).stdout
    said = json.loads(run("heal", dense, "--spans", SPANS, "-o", out, "--force", "--json", "-q", *options).stdout)
    assert said["written"].keys() == {"perplexity", "kl", "same_top"} and said["output"] == str(out)


def test_a_map_of_groups_is_healed_from_a_fitted_file(dense, tmp_path, built):
    """What is left of each touched layer learns; the runtime computes what torch computed; verify knows the file."""
    fitted, out = tmp_path / "fitted.gguf", tmp_path / "out.gguf"
    text = (read_text(tiny_models.DEMO / "LICENSE"),)
    shareatt_export.export(dense, "1.0:3.1+4.0", fitted, drop="4.1,6", refit=True, text=text)
    asked = request(dense, out, None, begin=fitted, train_mlp=True, learning_rate=1e-3, steps=20)
    begin = planned(asked).model.initial()["model.layers.4.self_attn.o_proj.weight"]  # group 0 of layer 4 is kept
    kept = read_f32(read_header(fitted).tensors["blk.4.attn_output.weight"])
    assert np.array_equal(begin[:, : kept.shape[1]], kept)
    done = heal.heal(planned(asked))
    first, *_, last = done.result.curve
    assert done.written.kl.value == pytest.approx(last.scores.kl, rel=0.05) and last.scores.kl < first.scores.kl
    assert verify(out, dense).plan.attention == verify(fitted, dense).plan.attention
    changed = set(read_header(out).value(KEY_FIT_TENSORS))
    assert {"blk.1.attn_q.weight", "blk.3.attn_q.weight", "blk.3.attn_v.weight", "blk.4.attn_output.weight"} <= changed
    assert not {name for name in changed if name.startswith(("blk.6.attn", "blk.4.attn_q"))}
    with pytest.raises(Unsupported, match="was healed already"):
        planned(request(dense, tmp_path / "again.gguf", None, begin=out))
