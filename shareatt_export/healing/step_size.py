"""Measure the learning rate that suits a model.

Adam's first steps change each weight by the learning rate, up or down. Along such a step the loss is nearly a parabola.
Its lowest point differs by a factor of 100 between models, and no number of their configuration tells it.
"""

import torch
from torch import Tensor

from .distill import Distiller

FIRST_STEP = 1e-3  # of the size of the weights: the first step that is tried
TRIES = 6


@torch.no_grad()
def measured_rate(distiller: Distiller, tokens: Tensor) -> float:
    """Return the step along the signs of the gradient that lowers the loss most, for tokens [n_batch, n_token].

    The weights of the distiller are afterwards what they were. They should not be rounded to the types of the output: a
    small step would change few of the rounded values.
    """
    leaves = list(distiller.weights.leaves.values())
    starts = [leaf.clone() for leaf in leaves]
    with torch.enable_grad():
        loss = distiller.backward(tokens)
    gradients = [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves]
    slope = sum(float(gradient.abs().sum()) for gradient in gradients)
    weights = [weight for weight in distiller.weights.trained().values() if weight.ndim > 1]
    rate = FIRST_STEP * float(torch.stack([weight.square().mean() for weight in weights]).mean().sqrt())
    for _ in range(TRIES):
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.sub_(gradient.sign(), alpha=rate)
        change = distiller.loss(tokens) - loss
        for leaf, start in zip(leaves, starts, strict=True):
            leaf.copy_(start)
        curvature = 2 * (change + slope * rate) / rate**2
        tried, rate = rate, slope / curvature if curvature > 0 else 4 * rate
        if tried / 2 < rate < 2 * tried:
            break
    for leaf in leaves:
        leaf.grad = None
    return float(f"{rate:.2g}")
