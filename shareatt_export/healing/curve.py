"""How well the student does on held-out windows, and how that changes during training."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scores:
    """Means over the second half of held-out windows, in nats per token, as `shareatt-export eval` computes them.

    Attributes:
        kl: KL divergence from the teacher's distribution to the student's.
        nll: Negative log-likelihood of the text, of the student.
        nll_teacher: The same of the teacher.
    """

    kl: float
    nll: float
    nll_teacher: float


@dataclass(frozen=True)
class CurvePoint:
    """The scores at one time of the training.

    Attributes:
        step: Number of steps up to then.
        seconds: Seconds of training up to then, without measuring.
        scores: The scores.
    """

    step: int
    seconds: float
    scores: Scores
