"""The metadata of an SA file: the dense file's metadata, updated, and the keys that describe the sharing."""

import math
from collections.abc import Sequence
from dataclasses import replace

import gguf

from .._version import __version__
from ..formats.gguf_encode import raw_array_i32, raw_string, raw_string_array, raw_u32
from ..formats.gguf_header import Header, RawValue
from ..formats.gguf_keys import (
    KEY_EXPORTER,
    KEY_FIT,
    KEY_FIT_SHA256,
    KEY_FIT_TENSORS,
    KEY_FIT_TEXT,
    KEY_FORMAT_VERSION,
    KEY_HEAL,
    KEY_SOURCE_BLAKE3,
    KEY_SOURCE_HEADS,
    KEY_SPANS,
    VERSION_HEADS,
    VERSION_LAYERS,
    key_source_heads,
    key_source_layers,
)
from ..formats.tensor_copies import TensorCopy
from ..model.attention_map import AttentionMap
from ..model.facts import Facts
from ..model.map_text import map_text, short_text
from .projections import Fitting, fitted_tensors

TAG = "shared-attention"


def sa_metadata(
    header: Header, facts: Facts, attention: AttentionMap, tensors: Sequence[TensorCopy], fitting: Fitting | None
) -> dict[str, RawValue]:
    """Return the metadata of the input, updated and in its order, then the keys that describe the sharing.

    `attention` and `tensors` are the output's. Hashes are zeros until with_identity() and with_fit().
    """
    dense = _before_sharing(header, facts)
    metadata = dict(dense.metadata)
    tag = _tag(attention)
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
        names = [copy.name for copy in fitted_tensors(header, facts, attention, fitting)]
        metadata |= {
            KEY_FIT: raw_string(str(fitting)),
            KEY_FIT_TEXT: raw_string(fitting.text_sha256),
            KEY_FIT_TENSORS: raw_string_array(names),
            KEY_FIT_SHA256: raw_string_array(["0" * 64] * len(names)),  # replaced by with_fit()
        }
        if fitting.heal:
            metadata[KEY_HEAL] = raw_string("")  # replaced by with_record()
    return metadata | {
        **_map_keys(facts, attention),
        KEY_SPANS: raw_string(map_text(attention)),
        KEY_EXPORTER: raw_string(f"shareatt-export {__version__}"),
        KEY_SOURCE_BLAKE3: raw_string("0" * 64),  # replaced by with_identity()
    }


def _before_sharing(header: Header, facts: Facts) -> Header:
    """Return the header without what an export adds.

    An SA file that gets more spans must become the same file as the dense model that gets all spans at once.
    """
    if not facts.is_shared:
        return header
    own = {
        key_source_layers(facts.arch),
        key_source_heads(facts.arch),
        KEY_SOURCE_HEADS,
        KEY_FORMAT_VERSION,
        KEY_SPANS,
        KEY_EXPORTER,
        KEY_SOURCE_BLAKE3,
    }
    metadata = {key: raw for key, raw in header.metadata.items() if key not in own}
    tag = _tag(facts.attention)
    for key, joint in (("general.name", " "), ("general.finetune", "-")):
        if text := header.text(key, ""):
            metadata[key] = raw_string(text.removesuffix(joint + tag))
    return replace(header, metadata=metadata)


def _map_keys(facts: Facts, attention: AttentionMap) -> dict[str, RawValue]:
    """A map of whole layers is version 1, which older runtimes read; any other is version 2, which they refuse."""
    if attention.source_layers is not None:
        return {
            key_source_layers(facts.arch): raw_array_i32(attention.source_layers),
            KEY_FORMAT_VERSION: raw_u32(VERSION_LAYERS),
        }
    return {
        key_source_heads(facts.arch): raw_array_i32(attention.in_file_order().flat()),
        KEY_FORMAT_VERSION: raw_u32(VERSION_HEADS),
        KEY_SOURCE_HEADS: raw_array_i32(attention.flat()),
    }


def _tag(attention: AttentionMap) -> str:
    return f"SA{short_text(attention)}"
