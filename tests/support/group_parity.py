"""Maps of KV groups, and the error of the runtime with them against torch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shareatt_export.exporting.write import write_plan
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.healing.sharing import GroupSharing
from shareatt_export.model.attention_map import AttentionMap, Group, check, dense_map, following
from shareatt_export.model.facts import read_facts
from shareatt_export.model.map_text import parse_map
from shareatt_export.plan.make_plan import make_plan
from tests.support import parity, tiny_models
from tests.support.parity import Array, Case

N_LAYER, N_HEAD = tiny_models.N_LAYER, tiny_models.N_HEAD


def dense(heads: str) -> AttentionMap:
    """Return the map of a dense tiny model; `heads` is a key of tiny_models.HEADS."""
    return dense_map([N_HEAD] * N_LAYER, [tiny_models.HEADS[heads]] * N_LAYER)


@dataclass(frozen=True)
class Text:
    """A map as the options of an export describe it."""

    spans: str | None
    drop: str | None = None

    def __call__(self, heads: str) -> AttentionMap:
        return parse_map(self.spans, self.drop, dense(heads), "first", [False] * N_LAYER)


def any_heads(heads: str) -> AttentionMap:
    """Each head of two followers has a head of its own choice: from another group, or the same as its neighbour."""
    found = dense(heads)
    first = Group(4, tiny_models.HEADS[heads] - 1)
    n_rep = found.n_rep(4)
    found = found.with_sources(first, [N_HEAD * 2 + (3 * i + 1) % N_HEAD for i in range(n_rep)])
    found = found.with_sources(Group(6, 0), [N_HEAD * 3 + N_HEAD - 1] * n_rep)
    check(found)
    return found


MAPS: dict[str, dict[str, Callable[[str], AttentionMap]]] = {
    "MHA": {
        "own, following and dropped": Text("1.0:2.1+3.2,4.1:5.0+6.3", "3.1,5.2,6.0-1"),
        "two sources in one layer": Text("1.0:4.1,2.3:4.0"),
        "two followers of one source": Text("1.2:4.0+4.3+5.1"),
        "a layer without attention": Text("1.1:3.0", "5,7.0"),
        "whole layers and groups": Text("2-3,5.0:6.2", "7.1-3"),
        "any heads": any_heads,
    },
    "GQA": {
        "own, following and dropped": Text("1.0:2.1+3.0,4.1:5.0+6.1", "3.1,6.0"),
        "two sources in one layer": Text("1.0:4.1,2.1:4.0"),
        "two followers of one source": Text("1.1:4.0+4.1+5.1"),
        "a layer without attention": Text("1.1:3.0", "0,5,7.0"),
        "whole layers and groups": Text("2-3,5.0:6.1", "7.0"),
        "any heads": any_heads,
    },
    "MQA": {
        "own, following and dropped": Text("1.0:2.0+3.0,4.0:6.0", "5"),
        "a layer without attention": Text(None, "0,7"),
        "any heads": any_heads,
    },
}
CASES = [(heads, name) for heads, maps in MAPS.items() for name in maps]


class GroupReference(GroupSharing):
    """The torch reference for inference; the classes below make one mistake each."""

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        with self.active(model), torch.no_grad():
            yield


class SwappedSources(GroupReference):
    """Two groups of layer 4 that follow have each other's sources."""

    def __init__(self, attention: AttentionMap) -> None:
        first, second = (group for group, _ in following(attention) if group.layer == 4)
        a, b = attention.of(first), attention.of(second)
        super().__init__(attention.with_sources(first, b).with_sources(second, a))


class OwnFromFollower(GroupReference):
    """The first own group of a layer with followers has the output of one of them."""

    def attend(self, layer, query, key, value, mask, **kwargs):  # type: ignore[no-untyped-def]
        output, weights = super().attend(layer, query, key, value, mask, **kwargs)
        own = self.attention.of_action(layer.layer_idx, "own")
        followers = self.attention.of_action(layer.layer_idx, "follow")
        if own and followers:
            first, second = (self.attention.heads(groups[0]) for groups in (own, followers))
            output[:, :, first.start : first.stop] = output[:, :, second.start : second.stop].clone()
        return output, weights


class DroppedAdded(GroupReference):
    """The V of a dropped group is still added."""

    def of_group(self, group: Group, value: Tensor) -> Tensor | float:
        if self.attention.action(group) == "drop":
            n_rep = self.attention.n_rep(group.layer)
            return value[:, group.number : group.number + 1].transpose(1, 2).repeat_interleave(n_rep, 2)
        return super().of_group(group, value)


MUTATIONS = {  # and the map that shows it
    "groups of two sources swapped": (SwappedSources, "two sources in one layer"),
    "own group read from a follower's rows": (OwnFromFollower, "own, following and dropped"),
    "dropped group's V still added": (DroppedAdded, "own, following and dropped"),
}


def expected(
    case: Case, attention: AttentionMap, sequence: int = 0, kind: type[GroupReference] = GroupReference
) -> Array:
    """Return the logits of torch, float64 [N_TOKENS, n_vocab], for a row of parity.TOKENS."""
    with kind(attention).on(case.torch_model):
        logits: Array = case.torch_model(torch.tensor(parity.TOKENS[sequence])[None]).logits[0].numpy()
    return logits


def exported(case: Case, attention: AttentionMap, folder: Path) -> Path:
    """Write the SA file of a case with a map, and return its path."""
    return written(case.dense, attention, folder / "groups.gguf")


def written(dense: Path, attention: AttentionMap, out: Path) -> Path:
    """Write the SA file of a dense file with a map, and return its path."""
    header = read_header(dense)
    write_plan(make_plan(header, read_facts(header), attention), [out], None)
    return out


def error(case: Case, file: Path, attention: AttentionMap, mode: str, kv: str, path: str) -> float:
    """Return the NMSE of the SA file of a case and a map against torch."""
    return parity.nmse(parity.logits(file, mode, kv, path), expected(case, attention, parity.MODES[mode].sequence))


def report(cases: Mapping[tuple[str, str], Case], folder: Path) -> Iterator[str]:
    """Yield the lines of docs/parity.md on maps of KV groups."""
    yield "\n## Maps of KV groups\n"
    yield "The largest error over all ways to decode, F32 weights and cache; the last row of each kind of heads is that"
    yield "of the dense model with flash attention.\n"
    yield f"| heads | map | {' | '.join(parity.PATHS)} |"
    yield "| --- | --- |" + " --- |" * len(parity.PATHS)
    for heads, maps in MAPS.items():
        case = cases[heads, "f32"]
        for name, make in maps.items():
            attention = make(heads)
            file = exported(case, attention, folder)
            cells = []
            for path in parity.PATHS:
                errors = (error(case, file, attention, mode, "f32", path) for mode in parity.MODES)
                cells.append(f"{max(errors):.1e}")
            yield f"| {heads} | {name} | {' | '.join(cells)} |"
        flash = max(parity.flash_error_of_dense(case, mode) for mode in parity.MODES)
        yield f"| {heads} | dense | | | | {flash:.1e} |"
    yield "\n| mutation | MHA | GQA |"
    yield "| --- | --- | --- |"
    for mutation, (kind, name) in MUTATIONS.items():
        cells = []
        for heads in ("MHA", "GQA"):
            case, attention = cases[heads, "f32"], MAPS[heads][name](heads)
            measured = parity.logits(exported(case, attention, folder))
            cells.append(f"{parity.nmse(measured, expected(case, attention, kind=kind)):.2f}")
        yield f"| {mutation} | {' | '.join(cells)} |"
