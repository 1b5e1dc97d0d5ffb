"""The errors that a user can cause or meet. cli.py turns them into one line and exit status 1.

A message names the file, the field and, where there is one, the next step.
"""


class ShareattError(Exception):
    """Base of the family."""


class BadInput(ShareattError):
    """A file or directory is not what it has to be."""


class BadSpans(ShareattError):
    """The spans cannot be read, or do not fit the model."""


class Unsupported(ShareattError):
    """The input is sound, but this version cannot export it; unknown means refused."""


class OutputRefused(ShareattError):
    """Writing there would harm something, or is not possible."""


class VerifyFailed(ShareattError):
    """A written file is not what its plan says."""


class RuntimeProblem(ShareattError):
    """The patched llama.cpp is missing, cannot be built or does not work."""


class ConversionFailed(ShareattError):
    """llama.cpp's converter refused the Hugging Face checkpoint."""


def one_line(text: str) -> str:
    """As one line, with names of strangers in it, that no terminal acts on."""
    plain = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in plain)
