"""The loop of healing: AdamW, warm-up and linear decay over a number of steps or of minutes, whichever ends first."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from ..system.progress import Step
from .distill import Distiller, Scores
from .saved_state import SavedState
from .training_text import TrainingWindows

WARMUP = 0.05  # of the run
BETAS = (0.9, 0.99)
CLIP = 1.0
SAVE_SECONDS, SAVE_SHARE = 60.0, 20  # state is saved every minute, but takes at most a twentieth of the time
SMOOTH = 0.95  # of the loss that is shown
POINTS = 10  # of the curve


@dataclass(frozen=True)
class Schedule:
    learning_rate: float
    batch: int
    seed: int
    minutes: float | None
    steps: int | None

    def done(self, step: int, seconds: float) -> float:
        """The share of the run that is over when `step` begins."""
        by_steps = step / self.steps if self.steps else 0.0
        by_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(by_steps, by_time))

    def rate(self, done: float) -> float:
        return self.learning_rate * min(1.0, (done + 0.1 * WARMUP) / WARMUP) * (1 - done)


@dataclass(frozen=True)
class CurvePoint:
    """Of the curve of a run."""

    step: int
    seconds: float
    scores: Scores


@dataclass(frozen=True)
class TrainingResult:
    curve: tuple[CurvePoint, ...]  # before, after, and at each tenth between them

    @property
    def steps(self) -> int:
        return self.curve[-1].step

    @property
    def seconds(self) -> float:
        return self.curve[-1].seconds


def train(
    distiller: Distiller,
    windows: TrainingWindows,
    schedule: Schedule,
    progress: SavedState | None,
    save: Callable[[SavedState], None],
    step: Step,
) -> TrainingResult:
    """Changes the distiller's leaves, from those of `progress` on if there is one. `save` is called every so often."""
    leaves = distiller.weights.leaves
    optimizer = torch.optim.AdamW(list(leaves.values()), lr=schedule.learning_rate, betas=BETAS, weight_decay=0.0)
    clock, i, curve = Clock(0.0), 0, list[CurvePoint]()
    if progress is not None:
        clock, i = Clock(progress.seconds), progress.step
        curve = [CurvePoint(**(point | {"scores": Scores(**point["scores"])})) for point in progress.curve]
        for name, leaf in leaves.items():
            leaf.data.copy_(progress.leaves[name])
        optimizer.load_state_dict(dict(progress.optimizer))
    next_save, shown = clock() + SAVE_SECONDS, float("nan")

    def save_all() -> None:
        save(SavedState(i, clock(), [asdict(point) for point in curve], leaves, optimizer.state_dict()))

    while (done := schedule.done(i, clock())) < 1:
        if POINTS * done >= len(curve):
            step("measuring", None)
            with clock.stopped():
                curve.append(CurvePoint(i, clock(), score(distiller, windows.held_out, schedule.batch)))
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(done)
        optimizer.zero_grad()
        loss = distiller.backward(windows.batch(i, schedule.batch, schedule.seed))
        clip_grad_norm_(leaves.values(), CLIP)
        optimizer.step()
        i += 1
        shown = loss if math.isnan(shown) else SMOOTH * shown + (1 - SMOOTH) * loss
        if clock() >= next_save:
            began = time.monotonic()
            save_all()
            next_save = clock() + max(SAVE_SECONDS, SAVE_SHARE * (time.monotonic() - began))
        step(f"healing, loss {shown:.3f}", done)
    step("measuring", None)
    seconds = clock()
    save_all()  # should the output fail, --resume has nothing left to train
    return TrainingResult((*curve, CurvePoint(i, seconds, score(distiller, windows.held_out, schedule.batch))))


class Clock:
    """Seconds of training: those of earlier runs, and not those of measuring."""

    def __init__(self, before: float) -> None:
        self._zero = time.monotonic() - before

    def __call__(self) -> float:
        return time.monotonic() - self._zero

    @contextmanager
    def stopped(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._zero += time.monotonic() - began


def score(distiller: Distiller, held_out: Tensor, batch: int) -> Scores:
    """The mean over all windows."""
    parts = torch.split(held_out.long(), batch)
    scores = [(asdict(distiller.score(part)), len(part)) for part in parts]
    n = sum(size for _, size in scores)
    return Scores(**{name: sum(values[name] * size for values, size in scores) / n for name in scores[0][0]})
