"""The texts of a measurement in reports: which they are, and that other texts give other results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..formats.texts import Corpus, TextSource

MATTERS = "Other kinds of text give other figures."


def corpus_dict(corpus: Corpus) -> dict[str, Any]:
    """Return the name and the hash of the text, and of each text if there are several."""
    data: dict[str, Any] = {"name": corpus.name, "sha256": corpus.sha256}
    if len(corpus.texts) > 1:
        data["texts"] = [{"name": text.name, "sha256": text.sha256} for text in corpus.texts]
    return data


def text_options(source: TextSource) -> list[str]:
    """Return the options of a command that takes the same texts; none for the mixture, or texts without a path."""
    sources = [source] if isinstance(source, (Path, str)) else source
    if not isinstance(sources, Sequence):
        return []
    return [word for path in sources if isinstance(path, (Path, str)) for word in ("--text", str(path))]
