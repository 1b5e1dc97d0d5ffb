"""Measure Shared Attention on a small model of each architecture, for test_architectures.py and the documentation:

python -m tests.support.architecture_proofs > docs/ARCHITECTURES.md
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shareatt_export.exporting.write import write_plan
from shareatt_export.formats.gguf_reader import read_header
from shareatt_export.model.architectures import ARCHITECTURES, LAYERS_ONLY, REASONS
from shareatt_export.model.attention_map import AttentionMap, Group
from shareatt_export.model.facts import Facts, read_facts
from shareatt_export.model.spans import parse_spans, source_map
from shareatt_export.plan.make_plan import make_plan
from shareatt_export.plan.plan import Plan
from tests.support import dummy_models, graph_taps, model_families, parity

N_SHARED = 8  # number of layers in the span; all layers of a model that has fewer


@dataclass(frozen=True)
class Proof:
    """The plan of a small model, and normalised mean squared errors (NMSE): the worst, or the least, of all followers.

    graph_taps.py explains how the attention output of a follower is read from the running graph.
    """

    plan: Plan
    fused: bool
    product: float  # attention output against the source's attention weights times the follower's V; at most PRODUCT
    value: float  # V of the first follower against its V in the dense model; its input is the same in both
    own_weights: float  # attention output against that with the follower's own weights; at least DIFFERENT
    dense: float  # output against that of the dense model; at least DIFFERENT
    paths: dict[str, float]  # output on the other paths of parity.PATHS against that on the plain path
    dense_flash: float  # output of the dense model with flash attention against that without it

    @property
    def facts(self) -> Facts:
        return self.plan.facts


def prove(arch: str, folder: Path) -> Proof:
    """Export a small model of `arch` with one span over its first N_SHARED layers, run it, and return the errors."""
    causal = ARCHITECTURES[arch].causal
    dense, shared = folder / f"{arch}.gguf", folder / f"{arch}-shared.gguf"
    dummy_models.make(arch, dense)
    header = read_header(dense)
    facts = read_facts(header)
    spans = parse_spans(f"0-{min(facts.n_layer, N_SHARED) - 1}", facts.n_layer, is_swa=facts.is_swa)
    plan = make_plan(header, facts, facts.of_layers(source_map(spans, facts.n_layer)))
    write_plan(plan, [shared], None)
    ours, theirs = graph_taps.run(shared, causal=causal), graph_taps.run(dense, causal=causal)
    pairs = [(span.source, follower) for span in spans for follower in span.followers]
    return Proof(
        plan,
        "blk.0.attn_qkv.weight" in header.tensors,
        max(graph_taps.error(ours, source, follower) for source, follower in pairs),
        parity.nmse(*(run.taps["Vcur", min(follower for _, follower in pairs)] for run in (ours, theirs))),
        min(graph_taps.error(ours, follower, follower, theirs) for _, follower in pairs),
        parity.nmse(ours.output, theirs.output),
        {
            path: parity.nmse(graph_taps.run(shared, path, causal).output, ours.output)
            for path in ("reuse", "recompute")
        },
        parity.nmse(graph_taps.run(dense, "recompute", causal).output, theirs.output),
    )


# ---------------------------------------------------------------- maps of KV groups


@dataclass(frozen=True)
class GroupProof:
    """The same for a map in which a group follows, another one is dropped, and a layer has no attention.

    `tried`: output of the export against that of the dense model with the map set at run time.
    """

    attention: AttentionMap
    product: float
    dense: float
    tried: float
    paths: dict[str, float]
    dense_flash: float


def mixed_map(facts: Facts) -> AttentionMap:
    """Return a map: in the last layer that has a source, a group follows, and elsewhere groups are dropped."""
    layers = range(facts.n_layer - facts.n_layer_nextn)
    last = max(layer for layer in layers if facts.is_swa.index(facts.is_swa[layer]) < layer)
    source = facts.is_swa.index(facts.is_swa[last])
    found = facts.attention.with_follow(Group(last, 0), Group(source, facts.n_head_kv[source] - 1))
    rest = [layer for layer in layers if layer not in (source, last)]
    for group in facts.attention.groups(rest[0]):
        found = found.with_drop(group)
    return found.with_drop(Group(rest[-1], 0))


def prove_groups(arch: str, folder: Path) -> GroupProof:
    """Export a small model of `arch` with mixed_map(), run it, and return the errors. Raises Unsupported."""
    causal = ARCHITECTURES[arch].causal
    dense, shared = folder / f"{arch}.gguf", folder / f"{arch}-groups.gguf"
    dummy_models.make(arch, dense)
    header = read_header(dense)
    facts = read_facts(header)
    attention = mixed_map(facts)
    plan = make_plan(header, facts, attention)
    write_plan(plan, [shared], None)
    ours, theirs = graph_taps.run(shared, causal=causal), graph_taps.run(dense, causal=causal)
    tried = graph_taps.run(dense, causal=causal, source_heads=attention.flat())
    in_file = attention.in_file_order()
    layers = [layer for layer in attention.touched if attention.n_v(layer)]
    return GroupProof(
        attention,
        max(graph_taps.error_of_groups(ours, in_file, layer) for layer in layers),
        parity.nmse(ours.output, theirs.output),
        parity.nmse(ours.output, tried.output),
        {
            path: parity.nmse(graph_taps.run(shared, path, causal).output, ours.output)
            for path in ("reuse", "recompute")
        },
        parity.nmse(graph_taps.run(dense, "recompute", causal).output, theirs.output),
    )


# ---------------------------------------------------------------- docs/ARCHITECTURES.md

PREFACE = """# Architectures

The architectures (`general.architecture`) that shareatt-export supports, and the proof for each of them. This page is
made by `python -m tests.support.architecture_proofs > docs/ARCHITECTURES.md`. `tests/llamacpp/test_architectures.py`
checks about twelve of them on every run, and all of them with `scripts/test.sh --full`.

The proof uses a small model with random weights in which attention matters. All its layers (the first 8, if it has
more) are exported as one span, and the patched llama.cpp runs it. The numbers are normalised mean squared errors:

- *product*: the attention output of a follower, read from the running graph, against the attention weights of its
  source times the follower's own V. This is rounding, and must be at most {product:.0e};
- *own weights*: the same output against that with the follower's own attention weights. A wrong source would show here;
- *dense*: the logits (for an encoder, the embeddings) against those of the dense model;
- *reuse*, *recompute*: the logits with flash attention on, against the plain path. *Dense, flash* is the same error
  of the dense model, because ggml rounds K and V to f16. Encoders have no KV cache and always recompute;
- *groups*: the same as *product*, and the logits of the export against those of the dense model with the map set at
  run time, whichever is larger, for a map in which a KV group follows, one is dropped, and a layer has no attention.
  *Layers only*: single KV groups of this architecture cannot share or be dropped; the reasons are below.

*Sliding* models have layers that attend to a sliding window (in Llama 4, a chunk) and layers that attend to all
positions; a span shares within each kind. In *fused* models Q, K and V are one tensor; a follower keeps the rows of V.
"""
PRODUCT, DIFFERENT = 1e-9, 1e-5  # the maximum of `product`; the minimum of `own_weights` and `dense`


def kind(arch: str, facts: Facts) -> str:
    """Return the kind of attention for the table: "full" or "sliding", with "encoder" before it for encoders."""
    words = [] if ARCHITECTURES[arch].causal else ["encoder"]
    words.append("sliding" if any(facts.is_swa) else "full")
    return ", ".join(words)


def report() -> Iterator[str]:
    """Yield the lines of docs/ARCHITECTURES.md."""
    yield PREFACE.format(product=PRODUCT)
    yield f"{len(ARCHITECTURES)} architectures:\n"
    columns = ("QKV", "attention", "product", "own weights", "dense", "reuse", "recompute", "dense, flash", "groups")
    yield f"| architecture | {' | '.join(columns)} |"
    yield "| --- |" + " --- |" * len(columns)
    for arch in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            proof = prove(arch, Path(folder))
            groups = "layers only"
            if ARCHITECTURES[arch].layers_only is None:
                of_groups = prove_groups(arch, Path(folder))
                groups = f"{max(of_groups.product, of_groups.tried):.1e}"
        numbers = [proof.product, proof.own_weights, proof.dense, *proof.paths.values(), proof.dense_flash]
        cells = [
            arch,
            "fused" if proof.fused else "split",
            kind(arch, proof.facts),
            *(f"{n:.1e}" for n in numbers),
            groups,
        ]
        yield f"| {' | '.join(cells)} |"
    yield "\n## Layers only\n"
    yield "| architecture | why |"
    yield "| --- | --- |"
    for reason in dict.fromkeys(LAYERS_ONLY.values()):
        yield f"| {', '.join(name for name, why in LAYERS_ONLY.items() if why == reason)} | {reason} |"
    yield ""
    yield from model_families.report()
    yield "\n## Not supported\n"
    yield "| architecture | why |"
    yield "| --- | --- |"
    reasons: dict[str, list[str]] = {}
    for names, reason in REASONS.items():
        reasons.setdefault(reason, []).extend(names.split())
    for reason, arches in reasons.items():
        yield f"| {', '.join(arches)} | {reason} |"


if __name__ == "__main__":
    for line in report():
        print(line, flush=True)
