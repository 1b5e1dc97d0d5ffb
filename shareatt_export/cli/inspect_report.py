"""What `shareatt-export inspect` and `runtime status` say, as tables and as JSON."""

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from ..formats.gguf_header import Header
from ..formats.gguf_keys import KEY_EXPORTER, KEY_FIT, KEY_FIT_TENSORS, KEY_FORMAT_VERSION, KEY_HEAL, KEY_SOURCE_BLAKE3
from ..llamacpp.devices import Device
from ..llamacpp.pin import pin
from ..llamacpp.runtime import RuntimeStatus, options_of
from ..model.facts import Facts
from ..model.map_text import in_words
from ..model.spans import runs, spans_of
from .tables import NEEDS, size, table


def as_dict(header: Header, facts: Facts, runtime: RuntimeStatus) -> dict[str, Any]:
    sha = header.value(KEY_SOURCE_BLAKE3)
    source_layers = facts.attention.source_layers
    spans = () if source_layers is None else spans_of(source_layers)
    return {
        "file": str(header.path),
        "file_bytes": header.file_size,
        "name": header.text("general.name", ""),
        "architecture": facts.arch,
        "layers": facts.n_layer,
        "tensors": len(header.tensors),
        "weight_bytes": sum(info.n_bytes for info in header.tensors.values()),
        "kv_bytes_per_token": facts.kv_bytes_per_token(facts.attention),
        "context_length": facts.n_ctx_train,
        "shared_attention": facts.is_shared,
        "source_layers": None if source_layers is None else list(source_layers),
        "source_heads": [list(sources) for sources in facts.attention.sources],
        "spans": [{"span": str(span), "in_words": span.in_words()} for span in spans],
        "touched_layers": [
            {"layer": layer, "in_words": in_words(facts.attention, layer)} for layer in facts.attention.touched
        ],
        "format_version": header.value(KEY_FORMAT_VERSION),
        "exporter": header.value(KEY_EXPORTER),
        "source_blake3": sha,
        "fit": header.value(KEY_FIT),
        "fitted_tensors": _fitted_tensors(header),
        "healed": _healed(header),
        "needs": NEEDS if facts.is_shared else "any llama.cpp that knows the architecture",
        "runtime": runtime_dict(runtime),
    }


def show(header: Header, facts: Facts, runtime: RuntimeStatus, console: Console) -> None:
    data = as_dict(header, facts, runtime)
    rows = [
        ("file", f"{data['file']} ({size(data['file_bytes'])})"),
        ("model", f"{data['name'] or '(no name)'}: {facts.arch}, {facts.n_layer} layers, {data['tensors']} tensors"),
        ("KV cache", f"{data['kv_bytes_per_token']} bytes per token (f16), context {facts.n_ctx_train}"),
        *[(f"span {span['span']}", span["in_words"]) for span in data["spans"]],
        *(
            [(f"layer {each['layer']}", each["in_words"]) for each in data["touched_layers"]]
            if not data["spans"]
            else []
        ),
    ]
    if facts.is_shared:
        rows += [("made by", str(data["exporter"] or "?")), ("from", f"tensor data {data['source_blake3'] or '?'}")]
        if data["fit"] is not None:
            rows.append(("weights", f"{len(data['fitted_tensors'])} tensors are not the dense model's ({data['fit']})"))
        if healed := data["healed"]:
            rows.append(("", _healed_words(healed)))
    else:
        rows.append(("attention", _dense_words(facts)))
    rows.append(("needs", str(data["needs"])))
    rows.append(("runtime", _runtime_words(runtime)))
    console.print(table(rows))


def _dense_words(facts: Facts) -> str:
    n_layer = facts.n_layer - facts.n_layer_nextn
    without = [layer for layer in range(n_layer) if not facts.n_head_kv[layer]]
    words = "every layer computes its own"
    if without:
        words = f"{n_layer - len(without)} of {n_layer} layers compute their own; layers without attention: "
        words += ", ".join(runs(without))
    counts = sorted({n for n in facts.n_head_kv if n})
    return f"dense: {words}" + (f"; {counts[0]} to {counts[-1]} KV heads" if len(counts) > 1 else "")


def _fitted_tensors(header: Header) -> list[str]:
    names = header.value(KEY_FIT_TENSORS)
    return [str(name) for name in names] if isinstance(names, list) else []


def _healed(header: Header) -> dict[str, Any] | None:
    """Return the record of the healing; None if there is none, or it is not one that this version can read."""
    try:
        record = json.loads(header.text(KEY_HEAL, ""))
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _healed_words(record: dict[str, Any]) -> str:
    try:
        first, last = record["held_out"][0]["kl"], record["held_out"][-1]["kl"]
        return f"healed with {record['tokens']:,} tokens: KL on held-out windows {first:.3f} -> {last:.3f}"
    except (KeyError, IndexError, TypeError, ValueError):
        return "healed"


def runtime_dict(runtime: RuntimeStatus) -> dict[str, Any]:
    return {
        "ready": runtime.ready,
        "origin": runtime.origin,
        "path": str(runtime.bin),
        "abi": pin().abi,
        "llama_cpp": pin().llama_cpp_commit,
        "built": runtime.built,
    }


def _runtime_words(runtime: RuntimeStatus) -> str:
    if runtime.problem is not None:
        return str(runtime.problem)
    built = runtime.built
    made_from = f"llama.cpp {built['llama_cpp']}, {built['source']}, ABI {built['abi']}"
    return f"{runtime.origin}, ready in {runtime.bin} ({made_from})"


def show_runtime(runtime: RuntimeStatus, devices: Sequence[Device], console: Console) -> None:
    rows = [("runtime", _runtime_words(runtime)), ("folder", str(runtime.root))]
    if options := options_of(runtime):
        rows.append(("built with", " ".join(options)))
    rows += [(f"device {device.name}", device.description) for device in devices]
    console.print(table(rows))
