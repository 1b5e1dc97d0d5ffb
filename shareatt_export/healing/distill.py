"""Distil a model into itself: the student is the teacher with shared attention and other weights in some layers.

    distiller = Distiller(model, Sharing(source_layers), weights)
    loss = distiller.backward(tokens)         # adds gradients to weights.leaves
    scores = distiller.score(held_out)

The loss is SwiftKV's (arXiv:2410.03960): T^2 KL(teacher || student) at T = 2, the mean over tokens, plus the squared
error of the hidden states before the last layer. The error of a token is divided by the square of the teacher's state
of that token. So its weight in the loss depends neither on the scale of the model nor on a few tokens with huge states.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from .common_layers import CommonLayers
from .curve import Scores
from .sharing import Sharing, checkpointed
from .trained_weights import TrainedWeights

T = TypeVar("T")

TEMPERATURE = 2.0
HIDDEN_WEIGHT = 1.0
HIDDEN_LAYER = -2  # of the states that transformers returns, the last being the normalised output
ROWS = 1024  # tokens whose distributions are in memory in float32 at a time


@dataclass(frozen=True)
class Outputs:
    """What the model computes for a batch: logits, and the hidden states before its last layer."""

    logits: Tensor  # [n_batch, n_token, n_vocab]
    hidden: Tensor  # [n_batch, n_token, n_embd]


class Distiller(nn.Module):
    """A model as the teacher, and with `sharing` and `weights` as the student.

    With `checkpointing` the backward pass computes layers again instead of keeping them in memory.
    """

    def __init__(
        self, model: PreTrainedModel, sharing: Sharing, weights: TrainedWeights, checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.model, self.sharing, self.weights, self.checkpointing = model, sharing, weights, checkpointing
        model.requires_grad_(False)
        self.common = CommonLayers(model, min(sharing.needed))

    def backward(self, tokens: Tensor) -> float:
        """Return the loss on tokens [n_batch, n_token], and add its gradients to weights.leaves."""
        tokens = tokens.to(self.model.device)
        teacher = self.teacher(tokens)

        def learn(student: Outputs) -> float:
            loss = _loss(student, teacher)
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())

        return self.as_student(tokens, learn)

    @torch.no_grad()
    def loss(self, tokens: Tensor) -> float:
        """Return the loss on tokens [n_batch, n_token]."""
        tokens = tokens.to(self.model.device)
        teacher = self.teacher(tokens)
        return self.as_student(tokens, lambda student: float(_loss(student, teacher)))

    @torch.no_grad()
    def score(self, tokens: Tensor) -> Scores:
        """Return the scores of held-out windows [n_batch, n_token]."""
        tokens = tokens.to(self.model.device)
        half = tokens.shape[1] // 2
        targets = tokens[:, half + 1 :].flatten()
        teacher = self.teacher(tokens).logits[:, half:-1].flatten(0, 1).float()
        student = self.as_student(tokens, lambda student: student.logits[:, half:-1].flatten(0, 1).float())
        nll, nll_teacher = (float(cross_entropy(logits, targets)) for logits in (student, teacher))
        return Scores(float(_divergence(student, teacher, 1.0)), nll, nll_teacher)

    @torch.no_grad()
    def importance(self, windows: Tensor, batch: int = 2) -> dict[str, npt.NDArray[np.float32]]:
        """Return the mean square of each input of the trained matrices on windows, as llama-imatrix measures it."""
        squares: dict[str, Tensor] = {}
        n_tokens = windows.numel()

        def add(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found = inputs[0].float().square().flatten(0, -2).sum(0) / n_tokens
            squares[name] = squares[name] + found if name in squares else found

        names = [name for name in self.weights.parts if name.endswith(".weight")]
        modules = {name: self.model.get_submodule(name.removesuffix(".weight")) for name in names}
        hooks = [module.register_forward_pre_hook(partial(add, name)) for name, module in modules.items()]
        try:
            for part in torch.split(windows.long(), batch):
                self.as_student(part.to(self.model.device), lambda outputs: None)
        finally:
            for hook in hooks:
                hook.remove()
        return {name: found.cpu().numpy() for name, found in squares.items()}

    @torch.no_grad()
    def teacher(self, tokens: Tensor) -> Outputs:
        """Return the teacher's outputs for tokens [n_batch, n_token], without gradients."""
        with self.common.recorded(tokens):
            return self._outputs(tokens)

    def as_student(self, tokens: Tensor, use: Callable[[Outputs], T]) -> T:
        """Call `use` with the student's outputs for tokens [n_batch, n_token], and return its result.

        The model is the student only until `use` returns, so a backward pass belongs inside `use`.
        """
        weights = {f"model.{name}": value for name, value in self.weights.cast().items()}
        with ExitStack() as stack:
            stack.enter_context(self.sharing.active(self.model))
            stack.enter_context(self.common.skipped(tokens))
            if self.checkpointing:
                stack.enter_context(checkpointed(self.model))
            result: T = functional_call(self, weights, (tokens, use))
            return result

    def forward(self, tokens: Tensor, use: Callable[[Outputs], T]) -> T:
        """Call `use` with the outputs of the model; as_student() runs this with the student's weights."""
        return use(self._outputs(tokens))

    def _outputs(self, tokens: Tensor) -> Outputs:
        out = self.model(tokens, output_hidden_states=True, use_cache=False)
        return Outputs(out.logits, out.hidden_states[HIDDEN_LAYER])


def _loss(student: Outputs, teacher: Outputs) -> Tensor:
    divergence = TEMPERATURE**2 * _divergence(student.logits, teacher.logits, TEMPERATURE)
    return divergence + HIDDEN_WEIGHT * _relative_error(student.hidden, teacher.hidden)


def _relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = student.float(), teacher.float()
    return ((student - teacher).square().mean(-1) / teacher.square().mean(-1)).mean()


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return KL(teacher || student) in nats per token, for logits [..., n_vocab].

    It computes ROWS tokens at a time: with a vocabulary of 128,000 tokens, all distributions take more memory than the
    model.
    """
    rows = zip(*(torch.split(logits.flatten(0, -2), ROWS) for logits in (student, teacher)), strict=True)
    parts = [checkpoint(_summed_kl, *logits, temperature, use_reentrant=False) for logits in rows]
    return torch.stack(parts).sum() / student[..., 0].numel()


def _summed_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_q, log_p = (log_softmax(logits.float() / temperature, -1) for logits in (student, teacher))
    return kl_div(log_q, log_p, reduction="sum", log_target=True)
