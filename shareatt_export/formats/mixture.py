"""The texts that are used where the user names none: prose, documentation, code and chat.

A model that was fitted on one kind of text loses several times more on another, so the default has several. Prose and
chat were written for this package; documentation and code are those of the running Python, so they differ from one
version of Python to another.
"""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent / "mixture_texts"
# modules of the standard library, on different matters, which every version of Python has
MODULES = ("argparse", "ast", "csv", "dataclasses", "difflib", "fractions", "heapq", "mailbox", "pathlib", "queue",
           "shutil", "socketserver", "statistics", "tarfile", "textwrap", "threading", "zipfile")  # fmt: skip


def texts() -> Iterator[tuple[str, str]]:
    """Yield the kind and the content of each text."""
    yield "prose", _read(FOLDER / "prose.txt")
    yield "code", "\n\n".join(_module(name) for name in MODULES)
    yield "documentation", _documentation()
    yield "chat", _read(FOLDER / "chat.txt")


def _module(name: str) -> str:
    folder = Path(sysconfig.get_path("stdlib"))
    file = folder / f"{name}.py"
    return _read(file if file.is_file() else folder / name / "__init__.py")  # some became packages in a later version


def _documentation() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[key] for key in sorted(topics))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
