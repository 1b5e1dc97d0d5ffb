"""What each architecture proves: the tap oracle on a small model of it. Behind test_architectures.py and the docs:

python -m tests.support.architecture_proofs > docs/ARCHITECTURES.md
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shareatt_export.exporting.write import write_plan
from shareatt_export.formats.gguf_header import read_header
from shareatt_export.model.architectures import ARCHITECTURES, REASONS
from shareatt_export.model.facts import Facts, read_facts
from shareatt_export.model.spans import parse_spans
from shareatt_export.plan.make_plan import make_plan
from shareatt_export.plan.plan import Plan
from tests.support import dummy_models, graph_taps, model_families, parity

N_SHARED = 8  # the first layers of a small model, all of them where it has no more


@dataclass(frozen=True)
class Proof:
    """Normalised mean squared errors, the worst or the least of all followers."""

    plan: Plan
    fused: bool
    product: float  # of the attention output against the source's weights times the follower's V; must be rounding
    value: float  # of V in the first follower, which sees what it sees in the dense model, against the V there
    own_weights: float  # against the weights that the follower would have computed itself; must be much
    dense: float  # of the output against that of the dense model; must be much
    paths: dict[str, float]  # of the output on other paths against that on the plain one
    dense_flash: float  # the dense model's own error between flash attention on and off

    @property
    def facts(self) -> Facts:
        return self.plan.facts


def prove(arch: str, folder: Path) -> Proof:
    causal = ARCHITECTURES[arch].causal
    dense, shared = folder / f"{arch}.gguf", folder / f"{arch}-shared.gguf"
    dummy_models.make(arch, dense)
    header = read_header(dense)
    facts = read_facts(header)
    spans = parse_spans(f"0-{min(facts.n_layer, N_SHARED) - 1}", facts.n_layer, is_swa=facts.is_swa)
    plan = make_plan(header, facts, spans)
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


# ---------------------------------------------------------------- docs/ARCHITECTURES.md

PREFACE = """# Architectures

What `general.architecture` may be, and how it was proven. Made by
`python -m tests.support.architecture_proofs > docs/ARCHITECTURES.md`; `tests/llamacpp/test_architectures.py` holds a
dozen of them on every run, all with `scripts/test.sh --full`.

The proof is a small model with random weights in which attention matters, exported with all layers (of 64, the first 8)
in one span, and run on the patched llama.cpp. The numbers are normalised mean squared errors:

- *product*: a follower's attention output, tapped while the graph runs, against its source's attention weights times
  its own V: rounding, at most {product:.0e};
- *own weights*: against the weights that the follower would have computed itself: what a wrong source would show;
- *dense*: the logits (of an encoder, the embeddings) against those of the dense model;
- *reuse*, *recompute*: the same against the plain path, with flash attention on; beside the dense model's own error
  between flash attention on and off (ggml rounds K and V to f16). Encoders have no KV cache and always recompute.

*Sliding* models mix layers that attend to a sliding window (Llama 4: a chunk) with layers that attend to everything; a
span shares within each kind. In *fused* models Q, K and V are one tensor, of which a follower keeps the rows of V.
"""
PRODUCT, DIFFERENT = 1e-9, 1e-5  # what `product` may be at most, `own_weights` and `dense` at least


def kind(arch: str, facts: Facts) -> str:
    words = [] if ARCHITECTURES[arch].causal else ["encoder"]
    words.append("sliding" if any(facts.is_swa) else "full")
    return ", ".join(words)


def report() -> Iterator[str]:
    yield PREFACE.format(product=PRODUCT)
    yield f"{len(ARCHITECTURES)} architectures:\n"
    yield "| architecture | QKV | attention | product | own weights | dense | reuse | recompute | dense, flash |"
    yield "| --- |" + " --- |" * 8
    for arch in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            proof = prove(arch, Path(folder))
        numbers = [proof.product, proof.own_weights, proof.dense, *proof.paths.values(), proof.dense_flash]
        cells = [arch, "fused" if proof.fused else "split", kind(arch, proof.facts), *(f"{n:.1e}" for n in numbers)]
        yield f"| {' | '.join(cells)} |"
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
