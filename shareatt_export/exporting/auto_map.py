"""The map that a search finds on the way to an export, for `--spans auto`."""

from typing import Any

from ..formats.gguf_header import Header
from ..formats.texts import Corpus
from ..model.attention_map import AttentionMap
from ..model.facts import Facts, require_exportable
from ..searching.request import GroupSearchRequest, SearchRequest
from ..system.progress import Fraction
from .request import ExportRequest


def found_map(header: Header, facts: Facts, request: ExportRequest, text: Corpus, watch: Fraction) -> AttentionMap:
    """Return what a search over KV groups finds.

    With a number of followers, with --align, or where KV groups cannot differ, it is a search over whole layers. Raises
    BadInput and Unsupported as the searches do.
    """
    from ..searching.search import search  # scipy takes a while to import
    from ..searching.search_groups import search_groups

    same: Any = {
        "max_kl": request.max_kl,
        "kv_bytes": request.kv_bytes,
        "save": request.save,
        "text": text,
        "refit": request.refit,
        "fast": request.fast,
        "n_threads": request.n_threads,
    }

    def step(what: str, fraction: float | None) -> None:
        watch(fraction or 0.0)

    if request.followers is not None or request.align or require_exportable(header).layers_only:
        found = search(SearchRequest(header.path, followers=request.followers, align=request.align, **same), step)
        return facts.of_layers(found.chosen.source_layers)
    return search_groups(GroupSearchRequest(header.path, **same), step).scores.chosen.attention
