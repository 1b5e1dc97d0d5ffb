#!/usr/bin/env python3
"""Measure two more ways to go without the KV cache of a layer's attention, beside dropping the attention.

    python scripts/other_actions.py smollm2.gguf 3 --text fit.txt --score prose-heldout.txt

linear   a linear map of the attention's input, by least squares (NBL, arXiv:2505.21077)
own V    each token uses its own V alone, as if its attention weights were the identity; then with W_O refitted as well

All three need no K and V of other tokens. Candidates are the eight layers whose attention costs least to drop, on the
first windows of the text. Of these, the layers of each action are chosen greedily: each is the one that costs least
together with those before it. Scores are means over windows of 256 tokens, the second half of each, with half of a 95 %
interval.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from shareatt_export.evaluation.divergence import Divergence, Quality
from shareatt_export.fitting.fit import HELD_OUT
from shareatt_export.fitting.ridge import NormalEquations, solve
from shareatt_export.formats.texts import read_corpus
from shareatt_export.healing.job import planned
from shareatt_export.healing.request import HealRequest

N_CTX, N_FIT, N_CHOOSE = 256, 64, 4  # tokens of a window; windows to fit on, of which the first choose the layers
N_CANDIDATES = 8

Action = Callable[[Tensor], Tensor]  # in place of a layer's attention: [batch, n_ctx, n_embd] to the same


def windows(job: Any, path: Path, n: int) -> Tensor:
    found = job.model.windows(read_corpus([path]).texts, N_CTX, lambda *said: None)
    return torch.cat([found.train, found.held_out])[:n].long()


def attention_of(model: nn.Module, layer: int) -> Any:
    return model.model.layers[layer].self_attn


@contextmanager
def replaced(model: nn.Module, actions: Mapping[int, Action]) -> Iterator[None]:
    """Let layers do something else than attention."""
    modules = {attention_of(model, layer): action for layer, action in actions.items()}
    before = {module: module.forward for module in modules}
    for module, action in modules.items():
        module.forward = lambda hidden_states, *_, action=action, **__: (action(hidden_states), None)
    try:
        yield
    finally:
        for module, forward in before.items():
            module.forward = forward


def own_values(module: Any, inputs: Tensor) -> Tensor:
    """Return what the output projection gets if each token attends to itself alone."""
    values = module.v_proj(inputs).unflatten(-1, (-1, module.head_dim))
    return values.repeat_interleave(module.num_key_value_groups, dim=-2).flatten(-2)


def solved(features: Tensor, targets: Tensor, before: np.ndarray) -> Tensor:
    """Return the matrix near `before` that maps features [n_windows, n_ctx, k] to targets [n_windows, n_ctx, m]."""
    fitted, held_out = (NormalEquations.empty(features.shape[-1], targets.shape[-1]) for _ in range(2))
    for i, (one, target) in enumerate(zip(features.numpy(), targets.numpy(), strict=True)):
        (held_out if i % HELD_OUT == HELD_OUT - 1 else fitted).add(one, target)
    return torch.from_numpy(solve(fitted, held_out, before).weights.astype(np.float32))


def actions_of(module: Any, inputs: Tensor, outputs: Tensor) -> dict[str, Action]:
    """Return the actions for one layer, whose attention had these inputs and outputs on windows."""
    linear = solved(inputs, outputs, np.zeros((outputs.shape[-1], inputs.shape[-1])))
    projection = module.o_proj.weight
    refitted = solved(own_values(module, inputs), outputs, projection.double().numpy())
    return {
        "dropped": torch.zeros_like,
        "linear": lambda hidden: hidden @ linear.T,
        "own V": lambda hidden: own_values(module, hidden) @ projection.T,
        "own V, W_O refitted": lambda hidden: own_values(module, hidden) @ refitted.T,
    }


def observed(model: nn.Module, layers: Sequence[int], rows: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Return the inputs and outputs of the attention of some layers on windows, [n_windows, n_ctx, n_embd]."""
    seen: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}

    def keeper(layer: int) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            seen[layer].append((kwargs.get("hidden_states", args[0] if args else None), output[0]))

        return keep

    hooks = [attention_of(model, layer).register_forward_hook(keeper(layer), with_kwargs=True) for layer in layers]
    for row in rows:
        model(row[None])
    for hook in hooks:
        hook.remove()
    return {layer: tuple(map(torch.cat, zip(*each, strict=True))) for layer, each in seen.items()}  # type: ignore[misc]


def quality(model: nn.Module, rows: Tensor, dense: Sequence[np.ndarray], actions: Mapping[int, Action]) -> Quality:
    half, divergence = N_CTX // 2, Divergence(len(rows), N_CTX - 1 - N_CTX // 2)
    with replaced(model, actions):
        for i, row in enumerate(rows):
            divergence.add(i, 0, logits(model, row), dense[i], row[half + 1 :].numpy())
    return divergence.quality()


def logits(model: nn.Module, row: Tensor) -> np.ndarray:
    found: np.ndarray = model(row[None]).logits[0, N_CTX // 2 : -1].float().numpy()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a dense GGUF")
    parser.add_argument("n", type=int, help="number of layers")
    parser.add_argument("--text", type=Path, required=True, help="to fit on and to choose the layers with")
    parser.add_argument("--score", type=Path, action="append", required=True, help="text to score; repeatable")
    parser.add_argument("--windows", type=int, default=16, help="of each scored text")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    job: Any = planned(HealRequest(args.model, spans="0-1", steps=1, text=args.text, n_ctx=N_CTX))
    model = job.model.load(torch.float32).eval()
    fit = windows(job, args.text, N_FIT)
    few = fit[:N_CHOOSE]
    dense = [logits(model, row) for row in few]

    def cost(actions: Mapping[int, Action]) -> float:
        return quality(model, few, dense, actions).kl.value

    def dropped(layer: int) -> float:
        print(f"layer {layer}", file=sys.stderr)
        return cost({layer: torch.zeros_like})

    candidates = sorted(range(job.model.facts.n_layer), key=dropped)[:N_CANDIDATES]
    seen = observed(model, candidates, fit)
    made = {layer: actions_of(attention_of(model, layer), *seen.pop(layer)) for layer in candidates}
    chosen: dict[str, dict[int, Action]] = {name: {} for name in made[candidates[0]]}
    for name, actions in chosen.items():
        while len(actions) < args.n:
            left = [layer for layer in candidates if layer not in actions]
            best = min(left, key=lambda layer: cost(actions | {layer: made[layer][name]}))
            actions[best] = made[best][name]
    print("| action | layers | text | KL | perplexity |\n| --- | --- | --- | --- | --- |")
    for path in args.score:
        rows = windows(job, path, args.windows)
        dense = [logits(model, row) for row in rows]
        for name, actions in chosen.items():
            found = quality(model, rows, dense, actions)
            ratio, layers = found.perplexity_ratio, ", ".join(map(str, sorted(actions)))
            kl = f"{found.kl.value:.2g} ± {found.kl.half:.1g}"
            change = f"{100 * (ratio.value - 1):+.1f} ± {100 * ratio.half:.1f} %"
            print(f"| {name} | {layers} | {path.stem} | {kl} | {change} |", flush=True)


if __name__ == "__main__":
    main()
