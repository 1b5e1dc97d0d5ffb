"""Distillation: which weights get gradients, their values, the teacher, the student and the loss."""

import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import AutoConfig, AutoModelForCausalLM

from shareatt_export.healing.distill import Distiller
from shareatt_export.healing.parts import roles_of, trained_parts
from shareatt_export.healing.sharing import Sharing
from shareatt_export.healing.trained_weights import TrainedWeights
from shareatt_export.model.spans import parse_spans, source_map
from tests.support import parity, tiny_models
from tests.support.torch_reference import SharedReference

SPANS = "2-4"
TOKENS = torch.from_numpy(parity.TOKENS[:, :24])


def qwen3() -> torch.nn.Module:
    """Return a tiny Qwen3, which has norms of Q and K; healing does not train them."""
    torch.manual_seed(3)
    config = AutoConfig.for_model("qwen3", **tiny_models.shape(2, 32), use_sliding_window=False, attention_bias=True)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=1.0 if "embed" in name else 1.5 / weight.shape[1] ** 0.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.1)
    return model


MODELS = {"llama": lambda: tiny_models.build(2), "qwen3": qwen3, "gemma2": lambda: tiny_models.build_sliding("gemma2")}
FAMILY_SPANS = {"llama": SPANS, "qwen3": SPANS, "gemma2": "2:4+6,3:5"}
TRAINED = {
    "llama": ["2.q_proj.weight", "2.k_proj.weight", "3.v_proj.weight", "3.o_proj.weight", "4.v_proj.weight",
              "4.o_proj.weight"],
    "qwen3": ["2.q_proj.weight", "2.q_proj.bias", "2.k_proj.weight", "2.k_proj.bias", "3.v_proj.weight",
              "3.v_proj.bias", "3.o_proj.weight", "3.o_proj.bias", "4.v_proj.weight", "4.v_proj.bias",
              "4.o_proj.weight", "4.o_proj.bias"],
    "gemma2": ["2.q_proj.weight", "2.k_proj.weight", "4.v_proj.weight", "4.o_proj.weight", "6.v_proj.weight",
               "6.o_proj.weight", "3.q_proj.weight", "3.k_proj.weight", "5.v_proj.weight", "5.o_proj.weight"],
}  # fmt: skip


def distiller(family: str = "llama", spans: str | None = None, **options: object) -> Distiller:
    model = MODELS[family]()
    model.set_attn_implementation("eager")
    parsed = parse_spans(spans or FAMILY_SPANS[family], tiny_models.N_LAYER)
    checkpointing = bool(options.pop("checkpointing", False))
    weights = TrainedWeights(
        model, trained_parts(model, roles_of(parsed), bool(options.pop("train_mlp", False))), **options
    )
    return Distiller(model, Sharing(source_map(parsed, tiny_models.N_LAYER)), weights, checkpointing)


def gradients(made: Distiller) -> dict[str, torch.Tensor]:
    made.backward(TOKENS)
    assert all(weight.grad is None for weight in made.model.parameters())
    return {name: leaf.grad for name, leaf in made.weights.leaves.items()}


@pytest.mark.parametrize("family", MODELS)
def test_every_trained_parameter_gets_a_gradient_and_no_other_with_checkpointing_too(family):
    """With checkpointing, the published code of arXiv 2407.12866 trains only the final norm and the head."""
    plain, checkpointed = (gradients(distiller(family, checkpointing=on)) for on in (False, True))
    names = [name.replace("model.layers.", "").replace("self_attn.", "") for name in plain]
    assert names == TRAINED[family]
    for name, gradient in plain.items():
        # A number added to all keys does not change the softmax; the bias of K has a gradient because of qwen3's norm.
        assert gradient.abs().max() > 1e-6, name
        assert torch.equal(gradient, checkpointed[name]), name


def test_checkpointing_computes_layers_again(monkeypatch):
    calls = []
    layer = type(distiller().model.model.layers[0].mlp)
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, x: calls.append(1) or forward(self, x))
    for checkpointing in (False, True):
        calls.clear()
        distiller(checkpointing=checkpointing).backward(TOKENS)
        assert (len(calls) > 2 * tiny_models.N_LAYER) is checkpointing


@pytest.mark.parametrize("name", ["2.self_attn.q_proj", "2.self_attn.k_proj", "4.self_attn.v_proj"])
def test_gradients_are_those_of_the_loss(name):
    """Compare with finite differences. The gradients of the source include those through its followers."""
    made = distiller()
    leaf = made.weights.leaves[f"model.layers.{name}.weight"]
    made.backward(TOKENS)
    gradient = leaf.grad.clone()
    direction, before = gradient / gradient.norm(), leaf.data.clone()
    losses = []
    for sign in (1, -1):
        leaf.data = before + sign * 0.02 * direction
        losses.append(made.backward(TOKENS))
    assert (losses[0] - losses[1]) / 0.04 == pytest.approx(gradient.norm().item(), rel=0.03)


def test_low_rank_begins_as_the_model_and_trains_both_factors():
    made = distiller(rank=2)
    full = distiller()
    assert all(torch.equal(a, full.weights.current()[name]) for name, a in made.weights.current().items())
    first = gradients(made)
    assert all((gradient != 0).any() for name, gradient in first.items() if name.endswith(".B"))
    with torch.no_grad():
        for leaf in made.weights.leaves.values():
            leaf -= leaf.grad / leaf.grad.norm().clamp_min(1e-9)
    assert all((gradient != 0).any() for gradient in gradients(made).values())
    changed = made.weights.current()["model.layers.2.self_attn.q_proj.weight"].detach()
    difference = changed - full.weights.current()["model.layers.2.self_attn.q_proj.weight"].detach()
    assert torch.linalg.matrix_rank(difference, atol=1e-3) == 2


def test_mlps_of_the_spans_layers():
    added = set(distiller(train_mlp=True).weights.leaves) - set(distiller().weights.leaves)
    assert added == {f"model.layers.{i}.mlp.{name}_proj.weight" for i in (2, 3, 4) for name in ("gate", "up", "down")}


@pytest.mark.parametrize("family", MODELS)
def test_the_untrained_student_is_the_reference_and_the_teacher_the_model(family):
    made = distiller(family)
    with SharedReference(made.sharing.source_layers).on(made.model):
        expected = made.model(TOKENS).logits
    with torch.no_grad():
        student = made.as_student(TOKENS, lambda outputs: outputs.logits)
        dense = made.model(TOKENS).logits
    assert torch.equal(student, expected)
    assert torch.equal(made.teacher(TOKENS).logits, dense)
    assert not torch.allclose(dense, expected, rtol=1e-2)


def test_loss_and_scores_by_hand():
    made = distiller()
    with torch.no_grad():
        student = made.as_student(TOKENS, lambda outputs: outputs)
    teacher = made.teacher(TOKENS)
    p, q = (log_softmax(logits.double() / 2, -1) for logits in (teacher.logits, student.logits))
    kl = 4 * (p.exp() * (p - q)).sum(-1).mean()
    error = (student.hidden - teacher.hidden).norm(dim=-1) ** 2 / teacher.hidden.norm(dim=-1) ** 2
    assert made.backward(TOKENS) == pytest.approx(float(kl + error.mean()), rel=1e-4)
    scores = made.score(TOKENS)
    p, q = (log_softmax(logits.double()[:, 12:-1], -1) for logits in (teacher.logits, student.logits))
    assert scores.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    targets = TOKENS[:, 13:, None]
    assert scores.nll == pytest.approx(-float(q.gather(-1, targets).mean()), rel=1e-4)
    assert scores.nll_teacher == pytest.approx(-float(p.gather(-1, targets).mean()), rel=1e-4)


def test_layers_before_the_first_span_are_computed_once(monkeypatch):
    """The student takes them over from the teacher for the same tokens, and computes them itself for others."""
    made, calls = distiller(), []
    layer = type(made.model.model.layers[0].mlp)
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, x: calls.append(1) or forward(self, x))
    n_layer, first = tiny_models.N_LAYER, 2
    with torch.no_grad():
        alone = made.as_student(TOKENS, lambda outputs: outputs)
        assert len(calls) == n_layer
        made.teacher(TOKENS)
        after = made.as_student(TOKENS, lambda outputs: outputs)
        assert len(calls) == 2 * n_layer + n_layer - first
        made.as_student(TOKENS.flip(1), lambda outputs: outputs)
        assert len(calls) == 4 * n_layer - first
    assert torch.equal(alone.logits, after.logits) and torch.equal(alone.hidden, after.hidden)
