"""Export language models with Shared Attention (arXiv 2407.12866) to GGUF, and run them in llama.cpp.

import shareatt_export
shareatt_export.export("model.gguf", spans="22-26", out="out.gguf")
"""

from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from .api import analyze, bench, evaluate, export, heal, search, search_groups
    from .benchmark.request import BenchRequest
    from .errors import ShareattError
    from .evaluation.request import AnalyzeRequest, EvaluateRequest
    from .exporting.request import ExportRequest
    from .healing.request import HealRequest
    from .searching.request import GroupSearchRequest, SearchRequest

__all__ = [
    "AnalyzeRequest",
    "BenchRequest",
    "EvaluateRequest",
    "ExportRequest",
    "GroupSearchRequest",
    "HealRequest",
    "SearchRequest",
    "ShareattError",
    "__version__",
    "analyze",
    "bench",
    "evaluate",
    "export",
    "heal",
    "search",
    "search_groups",
]


def __getattr__(name: str) -> object:
    """Import api.py when a name of it is used, so that the command line starts quickly."""
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
