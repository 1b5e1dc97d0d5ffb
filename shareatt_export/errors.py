"""Errors that a user can see. The command line prints each as one line and exits with status 1.

    raise BadInput("offset 96, expected 64", path=path, field="tensor 'output.weight'", next_step="get the file again")

reads as "model.gguf: tensor 'output.weight': offset 96, expected 64; get the file again".
"""

from pathlib import Path
from typing import Self

MAKE_AGAIN = "the file is damaged: get it or make it again"


class ShareattError(Exception):
    """Base class of the errors. Callers read the fields; `str` joins them for people.

    Attributes:
        reason: What is wrong.
        path: The file, folder or model, if it is about one.
        field: The place in it: a tensor, a metadata key, an option.
        next_step: What the user can do.
    """

    def __init__(
        self, reason: str, *, path: Path | str | None = None, field: str | None = None, next_step: str | None = None
    ) -> None:
        super().__init__(reason)
        self.reason, self.path, self.field, self.next_step = reason, path, field, next_step

    def __str__(self) -> str:
        text = ": ".join(str(part) for part in (self.path, self.field, self.reason) if part is not None)
        return text if self.next_step is None else f"{text}; {self.next_step}"

    def moved(self, old: Path, new: Path) -> Self:
        """Return this error with `new` in place of `old` if its path is `old` or a file in it, else itself."""
        if self.path is None or not (path := Path(self.path)).is_relative_to(old):
            return self
        rest = path.relative_to(old)
        return type(self)(self.reason, path=new / rest, field=self.field, next_step=self.next_step)


class BadInput(ShareattError):
    """A file or folder is missing, damaged or of the wrong kind."""


class BadSpans(ShareattError):
    """The spans cannot be read, or do not fit the model."""


class Unsupported(ShareattError):
    """The input is sound, but this version cannot export it. What the exporter does not know, it refuses."""


class OutputRefused(ShareattError):
    """Writing the output would overwrite something, or is not possible."""


class VerifyFailed(ShareattError):
    """A written file differs from its plan."""


class RuntimeProblem(ShareattError):
    """The patched llama.cpp is missing, cannot be built or does not work."""


class ConversionFailed(ShareattError):
    """llama.cpp's converter refused the Hugging Face checkpoint."""


def damaged(path: Path, field: str, reason: str, next_step: str = MAKE_AGAIN) -> BadInput:
    """Return the error for a file that contradicts itself or its format."""
    return BadInput(reason, path=path, field=field, next_step=next_step)


def one_line(text: str) -> str:
    """Return the text on one line with control characters escaped, as names in it may come from untrusted files."""
    plain = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in plain)
