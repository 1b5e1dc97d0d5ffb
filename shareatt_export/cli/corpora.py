"""The texts of a measurement in reports: which they are, and that other texts give other results."""

from typing import Any

from ..formats.texts import Corpus

MATTERS = "Other kinds of text give other figures."


def corpus_dict(corpus: Corpus) -> dict[str, Any]:
    """Return the name and the hash of the text, and of each text if there are several."""
    data: dict[str, Any] = {"name": corpus.name, "sha256": corpus.sha256}
    if len(corpus.texts) > 1:
        data["texts"] = [{"name": text.name, "sha256": text.sha256} for text in corpus.texts]
    return data
