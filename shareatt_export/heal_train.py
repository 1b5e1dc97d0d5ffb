"""The loop of healing: AdamW, warm-up and linear decay over a number of steps or of minutes, whichever ends first."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from .distill import Distiller, Scores
from .heal_state import Progress
from .heal_text import Windows
from .progress import Step

WARMUP = 0.05  # of the run
BETAS = (0.9, 0.99)
CLIP = 1.0
SAVE_SECONDS, SAVE_SHARE = 60.0, 20  # state is saved every minute, but takes at most a twentieth of the time
SMOOTH = 0.95  # of the loss that is shown


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

    def rate(self, step: int, seconds: float) -> float:
        done = self.done(step, seconds)
        return self.learning_rate * min(1.0, (done + 0.1 * WARMUP) / WARMUP) * (1 - done)


@dataclass(frozen=True)
class Result:
    before: Scores
    after: Scores
    steps: int
    seconds: float


def train(
    distiller: Distiller,
    windows: Windows,
    schedule: Schedule,
    progress: Progress | None,
    save: Callable[[Progress], None],
    step: Step,
) -> Result:
    """Changes the distiller's leaves, from those of `progress` on if there is one. `save` is called every so often."""
    leaves = list(distiller.weights.leaves.values())
    optimizer = torch.optim.AdamW(leaves, lr=schedule.learning_rate, betas=BETAS, weight_decay=0.0)
    if progress is None:
        step("measuring", None)
        i, seconds, before = 0, 0.0, score(distiller, windows.held_out, schedule.batch)
    else:
        i, seconds, before = progress.step, progress.seconds, Scores(**progress.before)
        for name, leaf in distiller.weights.leaves.items():
            leaf.data.copy_(progress.leaves[name])
        optimizer.load_state_dict(dict(progress.optimizer))
    started = time.monotonic() - seconds
    next_save = seconds + SAVE_SECONDS
    shown: float | None = None
    while (done := schedule.done(i, seconds)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(i, seconds)
        optimizer.zero_grad()
        loss = distiller.backward(windows.batch(i, schedule.batch, schedule.seed))
        clip_grad_norm_(leaves, CLIP)
        optimizer.step()
        i, seconds = i + 1, time.monotonic() - started
        shown = loss if shown is None else SMOOTH * shown + (1 - SMOOTH) * loss
        if seconds >= next_save:
            save(Progress(i, seconds, asdict(before), distiller.weights.leaves, optimizer.state_dict()))
            took = time.monotonic() - started - seconds
            next_save = seconds + max(SAVE_SECONDS, SAVE_SHARE * took)
        step(f"healing, loss {shown:.3f}", done)
    step("measuring", None)
    return Result(before, score(distiller, windows.held_out, schedule.batch), i, seconds)


def score(distiller: Distiller, held_out: Tensor, batch: int) -> Scores:
    """The mean over all windows."""
    parts = torch.split(held_out.long(), batch)
    scores = [(asdict(distiller.score(part)), len(part)) for part in parts]
    n = sum(size for _, size in scores)
    return Scores(**{name: sum(values[name] * size for values, size in scores) / n for name in scores[0][0]})
