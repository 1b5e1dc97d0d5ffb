"""Train the student: AdamW with warm-up and linear decay, for a number of steps or minutes, whichever ends first."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from ..system.progress import Step
from .curve import CurvePoint, Scores
from .distill import Distiller
from .saved_state import SavedState
from .training_text import TrainingWindows

WARMUP = 0.05  # the share of the run in which the learning rate rises
BETAS = (0.9, 0.99)
CLIP = 1.0  # the largest norm of the gradients
SAVE_SECONDS, SAVE_SHARE = 60.0, 20  # a state is saved every minute; saving takes at most a twentieth of the time
SMOOTH = 0.95  # the weight of the earlier steps in the loss that is shown
POINTS = 10  # points of the curve, without the last one
# points that take longer to measure are left out, so that measuring takes at most a tenth of the time
MEASURE_SECONDS, MEASURE_SHARE = 5.0, 10


@dataclass(frozen=True)
class Schedule:
    """How long to train, with what learning rate, on what batches; None as `minutes` or `steps` is no limit."""

    learning_rate: float
    batch: int
    seed: int
    minutes: float | None
    steps: int | None

    def done(self, step: int, seconds: float) -> float:
        """Return the share of the run that is over when `step` begins after `seconds`."""
        by_steps = step / self.steps if self.steps else 0.0
        by_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(by_steps, by_time))

    def rate(self, done: float) -> float:
        """Return the learning rate when the share `done` of the run is over."""
        return self.learning_rate * min(1.0, (done + 0.1 * WARMUP) / WARMUP) * (1 - done)


@dataclass(frozen=True)
class TrainingResult:
    """How the scores changed during the training.

    Attributes:
        curve: A point before training, one at each tenth of the run, and one after training. Of a large model there are
            fewer, as measuring them would take long.
    """

    curve: tuple[CurvePoint, ...]

    @property
    def steps(self) -> int:
        """The number of steps."""
        return self.curve[-1].step

    @property
    def seconds(self) -> float:
        """The time of training, without measuring."""
        return self.curve[-1].seconds


def train(
    distiller: Distiller,
    windows: TrainingWindows,
    schedule: Schedule,
    saved: SavedState | None,
    save: Callable[[SavedState], None],
    progress: Step,
) -> TrainingResult:
    """Train the distiller's leaves, which this changes. Goes on from `saved` if it is not None.

    Calls `save` about once a minute and at the end.
    """
    leaves = distiller.weights.leaves
    optimizer = torch.optim.AdamW(list(leaves.values()), lr=schedule.learning_rate, betas=BETAS, weight_decay=0.0)
    clock, i, curve = Clock(0.0), 0, list[CurvePoint]()
    if saved is not None:
        clock, i, curve = Clock(saved.seconds), saved.step, list(saved.curve)
        for name, leaf in leaves.items():
            leaf.data.copy_(saved.leaves[name])
        optimizer.load_state_dict(dict(saved.optimizer))
    next_save, next_measure, shown_loss = clock() + SAVE_SECONDS, 0.0, float("nan")

    def save_all() -> None:
        save(SavedState(i, clock(), schedule.learning_rate, curve, leaves, optimizer.state_dict()))

    while (done := schedule.done(i, clock())) < 1:
        tenth = int(POINTS * schedule.done(curve[-1].step, curve[-1].seconds)) if curve else -1
        if int(POINTS * done) > tenth and clock() >= next_measure:
            progress("measuring", None)
            began = time.monotonic()
            with clock.stopped():
                curve.append(CurvePoint(i, clock(), score(distiller, windows.held_out, schedule.batch)))
            if (took := time.monotonic() - began) > MEASURE_SECONDS:
                next_measure = clock() + MEASURE_SHARE * took
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(done)
        optimizer.zero_grad()
        loss = distiller.backward(windows.batch(i, schedule.batch, schedule.seed))
        clip_grad_norm_(leaves.values(), CLIP)
        optimizer.step()
        i += 1
        shown_loss = loss if math.isnan(shown_loss) else SMOOTH * shown_loss + (1 - SMOOTH) * loss
        if clock() >= next_save:
            began = time.monotonic()
            save_all()
            next_save = clock() + max(SAVE_SECONDS, SAVE_SHARE * (time.monotonic() - began))
        progress(f"healing, loss {shown_loss:.3f}", done)
    progress("measuring", None)
    seconds = clock()
    save_all()  # if the output cannot be written, --resume has nothing left to train
    return TrainingResult((*curve, CurvePoint(i, seconds, score(distiller, windows.held_out, schedule.batch))))


class Clock:
    """Counts the seconds of training, from `before` seconds of earlier runs on; call it for the current number."""

    def __init__(self, before: float) -> None:
        self._zero = time.monotonic() - before

    def __call__(self) -> float:
        return time.monotonic() - self._zero

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Do not count the time of the block."""
        began = time.monotonic()
        yield
        self._zero += time.monotonic() - began


def score(distiller: Distiller, held_out: Tensor, batch: int) -> Scores:
    """Return the mean scores over all windows [n_window, n_ctx], computed `batch` windows at a time."""
    parts = torch.split(held_out.long(), batch)
    scores = [(asdict(distiller.score(part)), len(part)) for part in parts]
    n = sum(size for _, size in scores)
    return Scores(**{name: sum(values[name] * size for values, size in scores) / n for name in scores[0][0]})
