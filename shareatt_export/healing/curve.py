"""How well the student does on held-out windows, and how that changes during training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scores:
    """Means over the second half of held-out windows, in nats per token, as `shareatt-export eval` computes them.

    `kl` is KL(teacher || student); `nll` and `nll_teacher` are the negative log-likelihoods of the text.
    """

    kl: float
    nll: float
    nll_teacher: float


@dataclass(frozen=True)
class CurvePoint:
    """The scores after `step` steps, and the seconds of training up to then."""

    step: int
    seconds: float
    scores: Scores
