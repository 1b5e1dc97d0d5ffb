"""The metadata of an SA file: the dense file's metadata, updated, and the keys that describe the sharing."""

import math
from collections.abc import Sequence
from dataclasses import replace

import gguf

from .._version import __version__
from ..formats.gguf_encode import raw_array_i32, raw_string, raw_string_array, raw_u32
from ..formats.gguf_header import Header, RawValue
from ..formats.gguf_keys import (
    FORMAT_VERSION,
    KEY_EXPORTER,
    KEY_FIT,
    KEY_FIT_SHA256,
    KEY_FIT_TENSORS,
    KEY_FIT_TEXT,
    KEY_FORMAT_VERSION,
    KEY_HEAL,
    KEY_SOURCE_SHA256,
    KEY_SPANS,
    key_source_layers,
)
from ..formats.tensor_copies import TensorCopy
from ..model.facts import Facts
from ..model.spans import SourceMap, Span, spans_of, spans_text
from .projections import Fitting, fitted_tensors

TAG = "shared-attention"


def sa_metadata(
    header: Header, facts: Facts, source_layers: SourceMap, tensors: Sequence[TensorCopy], fitting: Fitting | None
) -> dict[str, RawValue]:
    """Return the metadata of the input, updated and in its order, then the keys that describe the sharing.

    `source_layers` and `tensors` are the output's. SHA-256 values are zeros until with_identity() and with_fit().
    """
    dense = _before_sharing(header, facts)
    metadata = dict(dense.metadata)
    spans = spans_of(source_layers)
    tag = _tag(spans)
    if (name := dense.text("general.name", "")) != "":
        metadata = {key: raw for key, raw in metadata.items() if not key.startswith("general.base_model.")}
        metadata["general.name"] = raw_string(f"{name} {tag}")
        metadata["general.base_model.count"] = raw_u32(1)
        for field in ("name", "organization", "version", "repo_url"):
            if value := dense.text(f"general.{field}", ""):
                metadata[f"general.base_model.0.{field}"] = raw_string(value)
    if "general.finetune" in metadata:
        metadata["general.finetune"] = raw_string(f"{dense.text('general.finetune')}-{tag}")
    if "general.size_label" in metadata and f"{facts.arch}.expert_count" not in metadata:
        n_elements = sum(math.prod(copy.shape) for copy in tensors)
        metadata["general.size_label"] = raw_string(gguf.size_label(n_elements, n_elements, 0, 0))
    tags = dense.value("general.tags")
    known = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    metadata["general.tags"] = raw_string_array([*known, *([] if TAG in known else [TAG])])
    if fitting:
        names = [copy.name for copy in fitted_tensors(header, facts, source_layers, fitting)]
        metadata |= {
            KEY_FIT: raw_string(str(fitting)),
            KEY_FIT_TEXT: raw_string(fitting.text_sha256),
            KEY_FIT_TENSORS: raw_string_array(names),
            KEY_FIT_SHA256: raw_string_array(["0" * 64] * len(names)),  # replaced by with_fit()
        }
        if fitting.heal:
            metadata[KEY_HEAL] = raw_string("")  # replaced by with_record()
    return metadata | {
        key_source_layers(facts.arch): raw_array_i32(source_layers),
        KEY_FORMAT_VERSION: raw_u32(FORMAT_VERSION),
        KEY_SPANS: raw_string(spans_text(spans)),
        KEY_EXPORTER: raw_string(f"shareatt-export {__version__}"),
        KEY_SOURCE_SHA256: raw_string("0" * 64),  # replaced by with_identity()
    }


def _before_sharing(header: Header, facts: Facts) -> Header:
    """Return the header without what an export adds.

    An SA file that gets more spans must become the same file as the dense model that gets all spans at once.
    """
    if not facts.is_shared:
        return header
    own = {key_source_layers(facts.arch), KEY_FORMAT_VERSION, KEY_SPANS, KEY_EXPORTER, KEY_SOURCE_SHA256}
    metadata = {key: raw for key, raw in header.metadata.items() if key not in own}
    tag = _tag(spans_of(facts.source_layers))
    for key, joint in (("general.name", " "), ("general.finetune", "-")):
        if text := header.text(key, ""):
            metadata[key] = raw_string(text.removesuffix(joint + tag))
    return replace(header, metadata=metadata)


def _tag(spans: tuple[Span, ...]) -> str:
    return f"SA{spans_text(spans)}"
