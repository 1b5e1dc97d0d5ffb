"""Teacher and student in one model: the student has other weights in a few places, and shares attention.

    distiller = Distiller(model, Sharing(source_layers), weights)
    loss = distiller.backward(tokens)         # and gradients in weights.leaves
    scores = distiller.score(tokens)          # of held-out text

The loss is SwiftKV's: T^2 KL(teacher || student) at T = 2, the mean over tokens, plus the squared error of the hidden
states before the last layer. The error of a token is taken relative to the square of the teacher's state of that token,
so neither the model's scale nor the few tokens with huge states decide what it weighs.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from .sharing import Sharing, checkpointed
from .trained_weights import TrainedWeights

T = TypeVar("T")

TEMPERATURE = 2.0
HIDDEN_WEIGHT = 1.0
HIDDEN_LAYER = -2  # of the states that transformers returns, the last being the normalised output
ROWS = 1024  # tokens whose distributions are in memory in float32


@dataclass(frozen=True)
class Outputs:
    logits: Tensor  # [n_batch, n_token, n_vocab]
    hidden: Tensor  # [n_batch, n_token, n_embd]


@dataclass(frozen=True)
class Scores:
    """Means over the second half of held-out windows, in nats, as `shareatt-export eval` has them."""

    kl: float
    nll: float
    nll_teacher: float


class Distiller(nn.Module):
    def __init__(
        self, model: PreTrainedModel, sharing: Sharing, weights: TrainedWeights, checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.model, self.sharing, self.weights, self.checkpointing = model, sharing, weights, checkpointing
        model.requires_grad_(False)

    def backward(self, tokens: Tensor) -> float:
        """The loss on tokens [n_batch, n_token]; adds its gradients to the leaves."""
        tokens = tokens.to(self.model.device)
        teacher = self.teacher(tokens)

        def learn(student: Outputs) -> float:
            loss = TEMPERATURE**2 * _divergence(student.logits, teacher.logits, TEMPERATURE)
            loss = loss + HIDDEN_WEIGHT * _relative_error(student.hidden, teacher.hidden)
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())

        return self.as_student(tokens, learn)

    @torch.no_grad()
    def score(self, tokens: Tensor) -> Scores:
        tokens = tokens.to(self.model.device)
        half = tokens.shape[1] // 2
        targets = tokens[:, half + 1 :].flatten()
        teacher = self.teacher(tokens).logits[:, half:-1].flatten(0, 1).float()
        student = self.as_student(tokens, lambda student: student.logits[:, half:-1].flatten(0, 1).float())
        nll, nll_teacher = (float(cross_entropy(logits, targets)) for logits in (student, teacher))
        return Scores(float(_divergence(student, teacher, 1.0)), nll, nll_teacher)

    @torch.no_grad()
    def teacher(self, tokens: Tensor) -> Outputs:
        return self._outputs(tokens)

    def as_student(self, tokens: Tensor, use: Callable[[Outputs], T]) -> T:
        """use(what the student says). Its weights and Sharing are in place within `use` only, backward included."""
        weights = {f"model.{name}": value for name, value in self.weights.cast().items()}
        with ExitStack() as stack:
            stack.enter_context(self.sharing.active(self.model))
            if self.checkpointing:
                stack.enter_context(checkpointed(self.model))
            result: T = functional_call(self, weights, (tokens, use))
            return result

    def forward(self, tokens: Tensor, use: Callable[[Outputs], T]) -> T:
        return use(self._outputs(tokens))

    def _outputs(self, tokens: Tensor) -> Outputs:
        out = self.model(tokens, output_hidden_states=True, use_cache=False)
        return Outputs(out.logits, out.hidden_states[HIDDEN_LAYER])


def _relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = student.float(), teacher.float()
    return ((student - teacher).square().mean(-1) / teacher.square().mean(-1)).mean()


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL in nats per token, some rows at a time: with 128,000 words the distributions are larger than the model."""
    rows = zip(*(torch.split(logits.flatten(0, -2), ROWS) for logits in (student, teacher)), strict=True)
    parts = [checkpoint(_summed_kl, ours, theirs, temperature, use_reentrant=False) for ours, theirs in rows]
    return torch.stack(parts).sum() / student[..., 0].numel()


def _summed_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    ours, theirs = (log_softmax(logits.float() / temperature, -1) for logits in (student, teacher))
    return kl_div(ours, theirs, reduction="sum", log_target=True)
