#!/usr/bin/env python3
"""Measure two more ways to go without the KV cache of a KV group, or of a whole layer, beside dropping it.

    python scripts/other_actions.py smollm2.gguf 3 --text fit.txt --score prose-heldout.txt
    python scripts/other_actions.py smollm2.gguf 9 --unit group --text fit.txt --score prose-heldout.txt

own V    each token uses its own V alone, as if its attention weights were the identity
linear   a linear map of the attention's input, by least squares (NBL, arXiv:2505.21077); only for whole layers

None of them needs K and V of other tokens. Candidates are the units that cost least to drop, on the first windows of
the text. Of these, the units of each action are chosen greedily, each of them fitted alone: the next is the one that
costs least together with those before it. Then W_O of each touched layer is fitted in the order of depth, as --refit
does. Scores are means over windows of 256 tokens, the second half of each, with half of a 95 % interval.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from shareatt_export.evaluation.divergence import Divergence, Quality
from shareatt_export.fitting.refit import HELD_OUT
from shareatt_export.fitting.ridge import NormalEquations, solve
from shareatt_export.formats.texts import read_corpus
from shareatt_export.healing.job import planned
from shareatt_export.healing.request import HealRequest

N_CTX, N_FIT, N_CHOOSE = 256, 64, 4  # tokens of a window; windows to fit on, of which the first choose the units


class Unit(NamedTuple):
    """KV groups of a layer that change together."""

    layer: int
    groups: tuple[int, ...]


@dataclass(frozen=True)
class Change:
    """What a layer does without the KV cache of some groups. `weights`: its new W_O, or the linear map instead."""

    groups: tuple[int, ...]
    action: str
    weights: Tensor | None = None


@dataclass
class Attention:
    """The attention of a layer: what it got and what it gave when it last ran, and how it is changed."""

    module: Any
    change: Change | None = None
    input: Tensor = field(default_factory=lambda: torch.empty(0))
    values: Tensor = field(default_factory=lambda: torch.empty(0))  # of each query head, as if it attended to itself
    features: Tensor = field(default_factory=lambda: torch.empty(0))  # the input of W_O
    output: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        self.module.v_proj.register_forward_hook(self._keep_values)
        self.module.o_proj.register_forward_pre_hook(self._change_features)
        self.module.o_proj.register_forward_hook(self._change_output)

    def changed(self, features: Tensor, values: Tensor, change: Change) -> Tensor:
        """Return the input of W_O [..., n_head * head_dim] after a change."""
        n_kv = features.shape[-1] // self.module.head_dim // self.module.num_key_value_groups
        by_group, others = (each.unflatten(-1, (n_kv, -1)) for each in (features.clone(), values))
        for group in change.groups:
            by_group[..., group, :] = 0 if change.action == "dropped" else others[..., group, :]
        return by_group.flatten(-2)

    def _keep_values(self, module: Any, args: tuple[Tensor], output: Tensor) -> None:
        self.input = args[0]
        by_head = output.unflatten(-1, (-1, self.module.head_dim))
        self.values = by_head.repeat_interleave(self.module.num_key_value_groups, dim=-2).flatten(-2)

    def _change_features(self, module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        self.features = args[0] if self.change is None else self.changed(args[0], self.values, self.change)
        return (self.features,)

    def _change_output(self, module: Any, args: tuple[Tensor], output: Tensor) -> Tensor:
        self.output = output
        if self.change is not None and self.change.weights is not None:
            self.output = (self.input if self.change.action == "linear" else args[0]) @ self.change.weights.T
        return self.output


Changes = Mapping[int, Change]  # by layer


class Study:
    def __init__(self, model: Any) -> None:
        self.model = model
        self.attention = [Attention(layer.self_attn) for layer in model.model.layers]

    @contextmanager
    def changed(self, changes: Changes) -> Iterator[None]:
        for layer, change in changes.items():
            self.attention[layer].change = change
        yield
        for layer in changes:
            self.attention[layer].change = None

    def logits(self, row: Tensor) -> np.ndarray:
        found: np.ndarray = self.model(row[None]).logits[0, N_CTX // 2 : -1].float().numpy()
        return found

    def quality(self, rows: Tensor, dense: Sequence[np.ndarray], changes: Changes) -> Quality:
        half, divergence = N_CTX // 2, Divergence(len(rows), N_CTX - 1 - N_CTX // 2)
        with self.changed(changes):
            for i, row in enumerate(rows):
                divergence.add(i, 0, self.logits(row), dense[i], row[half + 1 :].numpy())
        return divergence.quality()

    def observed(self, layers: Sequence[int], rows: Tensor, changes: Changes, *names: str) -> dict[int, list[Tensor]]:
        """Return what the attention of some layers got or gave, [n_windows, n_ctx, ...], by the names of its fields."""
        seen: dict[int, list[list[Tensor]]] = {layer: [[] for _ in names] for layer in layers}
        with self.changed(changes):
            for row in rows:
                self.model.model(row[None])
                for layer, found in seen.items():
                    for name, pieces in zip(names, found, strict=True):
                        pieces.append(getattr(self.attention[layer], name))
        return {layer: [torch.cat(pieces) for pieces in found] for layer, found in seen.items()}

    def fitted(self, change: Change, features: Tensor, target: Tensor, layer: int) -> Change:
        """Return a change with the weights that map features to the target best."""
        before = self.attention[layer].module.o_proj.weight.double().numpy()
        if change.action == "linear":
            before = np.zeros((target.shape[-1], features.shape[-1]))
        fit, held_out = (NormalEquations.empty(features.shape[-1], target.shape[-1]) for _ in range(2))
        for i, pair in enumerate(zip(features.numpy(), target.numpy(), strict=True)):
            (held_out if i % HELD_OUT == HELD_OUT - 1 else fit).add(*pair)
        weights = solve(fit, held_out, before).weights
        return replace(change, weights=torch.from_numpy(weights.astype(np.float32)))

    def refitted(self, changes: Changes, rows: Tensor) -> Changes:
        """Return the changes with weights that are fitted in the order of depth."""
        targets = self.observed(list(changes), rows, {}, "output")
        done: dict[int, Change] = {}
        for layer in sorted(changes):
            bare = replace(changes[layer], weights=None)
            name = "input" if bare.action == "linear" else "features"
            ((features,),) = self.observed([layer], rows, done | {layer: bare}, name).values()
            done[layer] = self.fitted(bare, features, targets[layer][0], layer)
        return done


def merged(chosen: Sequence[Unit], action: str) -> dict[int, Change]:
    changes: dict[int, Change] = {}
    for layer, groups in chosen:
        before = changes[layer].groups if layer in changes else ()
        changes[layer] = Change((*before, *groups), action)
    return changes


def chosen_units(study: Study, units: Sequence[Unit], n: int, rows: Tensor, actions: Sequence[str]) -> Any:
    """Return for each action the `n` units that cost least together, each fitted alone."""
    few = rows[:N_CHOOSE]
    dense = [study.logits(row) for row in few]

    def cost(changes: Changes) -> float:
        return study.quality(few, dense, changes).kl.value

    def dropped(unit: Unit) -> float:
        print(f"layer {unit.layer}, KV groups {unit.groups}", file=sys.stderr)
        return cost(merged([unit], "dropped"))

    candidates = sorted(units, key=dropped)[: max(8, 2 * n)]
    layers = sorted({unit.layer for unit in candidates})
    seen = study.observed(layers, rows, {}, "input", "values", "features", "output")

    def fitted(found: Sequence[Unit], action: str) -> Changes:
        """Return the changes, each layer fitted on what it gets in the dense model."""
        changes = merged(found, action)
        for layer, change in changes.items():
            inputs, values, features, output = seen[layer]
            if action != "linear":
                inputs = study.attention[layer].changed(features, values, change)
            changes[layer] = study.fitted(change, inputs, output, layer)
        return changes

    for action in actions:
        found: list[Unit] = []
        while len(found) < n:
            left = [unit for unit in candidates if unit not in found]
            found.append(min(left, key=lambda unit: cost(fitted([*found, unit], action))))
            print(f"{action}: {found[-1]}", file=sys.stderr)
        yield action, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a dense GGUF")
    parser.add_argument("n", type=int, help="number of layers or KV groups")
    parser.add_argument("--unit", choices=("layer", "group"), default="layer")
    parser.add_argument("--text", type=Path, required=True, help="to fit on and to choose the units with")
    parser.add_argument("--score", type=Path, action="append", required=True, help="text to score; repeatable")
    parser.add_argument("--windows", type=int, default=16, help="of each scored text")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    job: Any = planned(HealRequest(args.model, spans="0-1", steps=1, text=args.text, n_ctx=N_CTX))
    study = Study(job.model.load(torch.float32).eval())

    def windows(path: Path, n: int) -> Tensor:
        found = job.model.windows(read_corpus([path]).texts, N_CTX, lambda *said: None)
        return torch.cat([found.train, found.held_out])[:n].long()

    facts, fit = job.model.facts, windows(args.text, N_FIT)
    groups = [range(n) for n in facts.n_head_kv]
    units = [Unit(layer, tuple(each)) for layer, each in enumerate(groups)]
    actions = ["dropped", "own V"]
    if args.unit == "group":
        units = [Unit(layer, (group,)) for layer, each in enumerate(groups) for group in each]
    else:
        actions.append("linear")
    maps: dict[tuple[str, str], Changes] = {}
    for action, found in chosen_units(study, units, args.n, fit, actions):
        changes = merged(found, action)
        names = [f"{layer}" if args.unit == "layer" else f"{layer}.{groups[0]}" for layer, groups in sorted(found)]
        if action != "linear":
            maps[action, ", ".join(names)] = changes
        maps[f"{action}, fitted", ", ".join(names)] = study.refitted(changes, fit)
    print("| action | units | text | KL | perplexity |\n| --- | --- | --- | --- | --- |")
    for path in args.score:
        rows = windows(path, args.windows)
        dense = [study.logits(row) for row in rows]
        for (action, name), measured in maps.items():
            scored = study.quality(rows, dense, measured)
            ratio = scored.perplexity_ratio
            kl = f"{scored.kl.value:.2g} ± {scored.kl.half:.1g}"
            change = f"{100 * (ratio.value - 1):+.1f} ± {100 * ratio.half:.1f} %"
            print(f"| {action} | {name} | {path.stem} | {kl} | {change} |", flush=True)


if __name__ == "__main__":
    main()
