"""Exports and plans of GGUF files, for the tests that need an SA file."""

from pathlib import Path
from typing import Any

import shareatt_export
from shareatt_export.exporting.verify import verify
from shareatt_export.formats.shards import read_model
from shareatt_export.model.attention_map import AttentionMap
from shareatt_export.model.facts import Facts, read_facts
from shareatt_export.model.spans import extended, parse_spans
from shareatt_export.plan.make_plan import make_plan
from shareatt_export.plan.plan import Plan


def spans_map(facts: Facts, spans: str) -> AttentionMap:
    """Return the map of a model that gets these spans."""
    before = facts.attention.source_layers
    assert before is not None
    return facts.of_layers(extended(before, parse_spans(spans, facts.n_layer, is_swa=facts.is_swa)))


def plan_of(dense: Path, spans: str = "6-9") -> Plan:
    """Return the plan of an export of the GGUF `dense`, or of the model whose first shard it is."""
    header = read_model(dense)
    facts = read_facts(header)
    return make_plan(header, facts, spans_map(facts, spans))


def export(dense: Path, out: Path, spans: str = "6-9", **options: Any) -> Path:
    """Export `dense` to `out`, verify the result against `dense`, and return `out`.

    `options` are the further arguments of shareatt_export.export.
    """
    shareatt_export.export(dense, spans, out, **options)
    verify(out, dense)
    return out
