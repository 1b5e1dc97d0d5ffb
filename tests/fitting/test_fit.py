"""--align and --refit: moved heads compute what an explicit head map computes, and refitting reduces the error."""

import json
import shutil

import numpy as np
import pytest
from gguf import GGMLQuantizationType

import shareatt_export
from shareatt_export.errors import Unsupported, VerifyFailed
from shareatt_export.evaluation.evaluate import evaluate
from shareatt_export.evaluation.request import EvaluateRequest
from shareatt_export.exporting.verify import verify
from shareatt_export.fitting import fit, heads
from shareatt_export.fitting.trial_model import TrialModel
from shareatt_export.formats.gguf_keys import KEY_FIT_TENSORS
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.formats.tensor_copies import float_rows, raw_rows
from shareatt_export.formats.texts import read_text
from shareatt_export.model.facts import read_facts
from shareatt_export.plan.make_plan import make_plan
from shareatt_export.plan.projections import Fitting, projections
from tests.support import dummy_models, model_families, parity, tiny_models
from tests.support.exports import spans_map
from tests.support.torch_reference import SharedReference

HELDOUT = tiny_models.DEMO / "heldout.txt"
RNG = np.random.default_rng(5)


@pytest.fixture
def part(tmp_path_factory):
    """A text for fits of which it only matters what is said of them."""
    path = tmp_path_factory.mktemp("text") / "part.txt"
    path.write_text(HELDOUT.read_text()[:20_000])
    return path


# ---------------------------------------------------------------- heads


def explicit(maps: dict[int, heads.Heads]) -> type[SharedReference]:
    """Return a reference in which each head of a follower uses the attention weights of a chosen head."""

    class HeadMap(SharedReference):
        def reused(self, index):
            return self.weights[self.source_layers[index]][:, list(maps[index])]

    return HeadMap


def aligned(dense, folder, spans="2-5"):
    return shareatt_export.export(dense, spans, folder / "aligned.gguf", align=True, text=HELDOUT)


def far(case, file, source_layers, kind=SharedReference):
    return parity.nmse(parity.logits(file), case.reference(source_layers, kind=kind))


@pytest.mark.parametrize("kv", ["MHA", "GQA", "MQA"])
def test_moved_heads_are_an_explicit_head_map(kv, tmp_path, built):
    case = parity.make_case(kv, "f32", tmp_path)
    done = aligned(case.dense, tmp_path)
    source_layers = done.job.plan.attention.source_layers
    maps = {follower.layer: follower.heads for follower in done.followers}
    assert set(maps) == {3, 4, 5} and any(order != (0, 1, 2, 3) for order in maps.values())
    assert far(case, done.files[0], source_layers, explicit(maps)) < parity.TOLERANCE["f32"]
    assert far(case, done.files[0], source_layers) > 1e-2  # heads in the order of the dense model
    inverse = {layer: tuple(np.argsort(order)) for layer, order in maps.items()}
    if inverse != maps:
        assert far(case, done.files[0], source_layers, explicit(inverse)) > 1e-2


@pytest.mark.parametrize("family", ["phi3", "qwen2"])
def test_rows_of_v_in_a_fused_tensor_and_its_bias_move_along(family, tmp_path, built):
    case = model_families.make_case(family, tmp_path)
    n_layer = case.torch_model.config.num_hidden_layers
    done = aligned(case.dense, tmp_path, f"1-{n_layer - 1}")
    maps = {follower.layer: follower.heads for follower in done.followers}
    assert any(order != tuple(range(len(order))) for order in maps.values())
    changed = [copy.name for copy in done.job.plan.fitted]
    assert ("blk.2.attn_v.bias" in changed) == (family == "qwen2")
    assert far(case, done.files[0], done.job.plan.attention.source_layers, explicit(maps)) < parity.TOLERANCE["f32"]


def quantised(dense, out, type):
    """Quantise a dense GGUF with llama-quantize."""
    from shareatt_export.llamacpp import runtime
    from shareatt_export.system import child_process

    command = [str(runtime.tool("llama-quantize")), "--pure", str(dense), str(out), type]
    assert child_process.run(command, lambda line: None) == 0
    return out


def planned(dense, spans="6-9", align=True, refit=False):
    header = read_header(dense)
    facts = read_facts(header)
    return make_plan(header, facts, spans_map(facts, spans), Fitting(align, refit, "0" * 64))


def test_quantised_heads_are_moved_as_bytes(demo_dense, tmp_path, built):
    plan = planned(quantised(demo_dense, tmp_path / "q8_0.gguf", "Q8_0"))
    tensors = projections(plan.dense, plan.facts, 7)
    order = (3, 2, 5, 4, 0, 1)
    with TrialModel(built, plan.dense) as trial_model:
        changes = fit.moved(trial_model, tensors, order, 3)
    for head in range(6):
        at, was = slice(34 * order[head], 34 * order[head] + 34), slice(34 * head, 34 * head + 34)
        assert np.array_equal(changes[tensors.output][:, at], raw_rows(tensors.output)[:, was])
    groups = heads.groups_of(order, 3)
    assert groups == (1, 2, 0)
    assert np.array_equal(changes[tensors.v][32:64], raw_rows(tensors.v)[:32])


def test_blocks_that_span_heads_are_quantised_again(tmp_path, built):
    case = parity.make_case("GQA", "f32", tmp_path, head_dim=64)  # rows of 256, blocks of 256
    plan = planned(quantised(case.dense, tmp_path / "q6_k.gguf", "Q6_K"), "2-5")
    output = projections(plan.dense, plan.facts, 3).output
    assert output.type == GGMLQuantizationType.Q6_K
    assert not heads.can_move(4, output.shape[0], output.type)
    order = (3, 2, 0, 1)
    with TrialModel(built, plan.dense) as trial_model:
        changes = fit.moved(trial_model, projections(plan.dense, plan.facts, 3), order, 2)
        unmoved = fit.moved(trial_model, projections(plan.dense, plan.facts, 3), (0, 1, 2, 3), 2)
    before, after = float_rows(raw_rows(output), output.type), float_rows(changes[output], output.type)
    expected = before.reshape(256, 4, 64)[:, np.argsort(order)].reshape(256, 256)
    assert parity.nmse(after, expected) < 1e-3 and parity.nmse(after, before) > 0.5
    assert np.array_equal(unmoved[output], raw_rows(output))


def test_what_was_quantised_again_is_told(run, demo_dense, part, tmp_path, built):
    q8_0 = quantised(demo_dense, tmp_path / "q8_0.gguf", "Q8_0")
    arguments = ["--spans", "6-7", "--align", "--text", part, "--force", "-o", tmp_path / "out.gguf"]
    for model, more, expected in ((q8_0, [], False), (q8_0, ["--refit"], True), (demo_dense, ["--refit"], False)):
        said = run(model, *arguments, *more).stderr
        assert ("The output projection (W_O) of layer 7 was quantised again" in said) is expected


@pytest.mark.parametrize("type", ["IQ2_XXS", "Q2_K", "Q4_0", "F16"])
def test_types_that_need_an_importance_get_one(demo_dense, built, type):
    values = RNG.standard_normal((4, 512)).astype(np.float32)
    ggml_type = GGMLQuantizationType[type]
    with TrialModel(built, read_header(demo_dense)) as trial_model:
        assert parity.nmse(float_rows(trial_model.encoded(values, ggml_type), ggml_type), values) < 0.7


def test_heads_behind_a_norm_are_not_moved(tmp_path, built):
    """BitNet normalises the output of its heads with one weight per number, so heads cannot be exchanged."""
    dummy_models.make("bitnet", tmp_path / "bitnet.gguf")
    plan = planned(tmp_path / "bitnet.gguf", "0-1")
    with TrialModel(built, plan.dense) as trial_model, pytest.raises(Unsupported, match="between the heads of layer 1"):
        fit.require_bare_heads(trial_model, [1], "--align")


# ---------------------------------------------------------------- a model


@pytest.fixture(scope="module")
def refitted(demo_dense, tmp_path_factory, built):
    folder = tmp_path_factory.mktemp("refitted")
    text = folder / "text.txt"
    text.write_text(HELDOUT.read_text()[:100_000])
    return shareatt_export.export(demo_dense, "6-9", folder / "fitted.gguf", align=True, refit=True, text=text)


def test_a_trial_is_the_file_that_is_written(demo_dense, refitted, built, tmp_path):
    from shareatt_export.llamacpp.engine import Context, Token

    plan = refitted.job.plan
    tokens = [Token(int(t), i) for i, t in enumerate(parity.TOKENS[0])]
    sa = read_header(refitted.files[0])
    changes = {}
    for copy in planned(demo_dense).fitted:
        info = sa.tensors[copy.name]
        rows = int(np.prod(info.shape[1:]))
        changes[copy] = np.memmap(info.path, np.uint8, "r", info.offset, (rows, info.n_bytes // rows))
    with TrialModel(built, plan.dense) as trial_model:

        def run(attention, changed):
            trial_model.change(attention, changed)
            with Context(trial_model.model, False, **{"n_ctx": 256, "type_k": 0, "type_v": 0}) as context:
                return context.decode(tokens)

        dense = run(plan.facts.attention, {})
        ours = run(plan.attention, changes)
        again = run(plan.facts.attention, {})
    assert parity.nmse(ours, parity.logits(refitted.files[0])) < 1e-9
    assert parity.nmse(dense, ours) > 1e-3 and np.array_equal(dense, again)


def test_refitting_brings_the_model_closer(demo_dense, refitted, tmp_path):
    plain = shareatt_export.export(demo_dense, "6-9", tmp_path / "plain.gguf").files[0]
    text = read_text(HELDOUT)
    text = type(text)("the rest", text.content[100_000:])
    _, before, after = evaluate(
        EvaluateRequest(demo_dense, (plain, refitted.files[0]), text, 256, 8, baselines=False)
    ).scores
    assert after.kl.value < 0.8 * before.kl.value
    for follower in refitted.followers:
        assert follower.ridge is not None and follower.error < follower.error_before


def test_every_byte_of_a_fitted_file_is_verified(demo_dense, refitted, tmp_path):
    sa = refitted.files[0]
    assert verify(sa, demo_dense).n_tensors == len(read_header(sa).tensors)
    changed = read_header(sa).value(KEY_FIT_TENSORS)
    assert changed == [f"blk.{layer}.{role}.weight" for layer in (7, 8, 9) for role in ("attn_v", "attn_output")]
    for name in ("blk.8.attn_output.weight", "blk.8.ffn_up.weight"):
        copy = tmp_path / "copy.gguf"
        shutil.copy(sa, copy)
        with copy.open("r+b") as file:
            file.seek(read_header(copy).tensors[name].offset + 5)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
        with pytest.raises(VerifyFailed, match="fitted tensor" if "output" in name else name):
            verify(copy, demo_dense)


def test_the_command(run, demo_dense, part, tmp_path):
    out = tmp_path / "out.gguf"
    arguments = [demo_dense, "--spans", "6-7", "--refit", "--align", "--text", part, "-o", out]
    dry = json.loads(run(*arguments[:-2], "--dry-run", "--json").stdout)
    data = json.loads(run(*arguments, "--json", "--card").stdout)
    assert dry["fit"] == data["fit"] and data["fit"]["how"] == "align,refit"
    assert dry["file_bytes"] == [out.stat().st_size]
    (follower,) = data["followers"]
    assert (follower["layer"], follower["sources"]) == (7, [6]) and sorted(follower["heads"]) == [*range(6)]
    assert follower["error"] < follower["error_before"]
    assert "except for 2 tensors that were fitted (align,refit)" in (tmp_path / "README.md").read_text()
    assert run("inspect", out).status == 0
    done = run(out, "--spans", "1-2", "--refit", "-o", tmp_path / "more.gguf")
    assert done.error == f"Error: {out}: shares attention already; fit the dense model, with all spans at once"
    more = tmp_path / "more.gguf"
    assert run(out, "--spans", "1-2", "-o", more).status == 0
    assert run("verify", more, "--against", out).status == 0
    shown = run(*arguments, "--force").stderr
    assert "error before" in shown and "held out of the fit" in " ".join(shown.split())


def test_fitting_then_quantising(run, demo_dense, part, tmp_path):
    out = tmp_path / "out.gguf"
    arguments = [demo_dense, "--spans", "6-7", "--refit", "--text", part, "--outtype", "Q8_0", "-o", out]
    dry = json.loads(run(*arguments[:-2], "--dry-run", "--json").stdout)
    assert run(*arguments).status == 0
    assert dry["file_bytes"] == [out.stat().st_size]
    assert read_header(out).tensors["blk.7.attn_output.weight"].type == GGMLQuantizationType.Q8_0


def test_texts_that_do_not_do(run, demo_dense, tmp_path):
    out = tmp_path / "out.gguf"
    missing = tmp_path / "none.txt"
    arguments = [demo_dense, "--spans", "6-7", "--refit", "-o", out, "--text"]
    assert run(*arguments, missing).error == f"Error: {missing}: no such file"
    short = tmp_path / "short.txt"
    short.write_text("x = 1\n")
    assert "tokens; a window takes 256" in run(*arguments, short).error
    assert list(tmp_path.iterdir()) == [short]


def test_same_input_same_bytes(demo_dense, refitted, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(HELDOUT.read_text()[:100_000])
    again = shareatt_export.export(demo_dense, "6-9", tmp_path / "again.gguf", align=True, refit=True, text=text)
    assert again.files[0].read_bytes() == refitted.files[0].read_bytes()
