"""Read the Markdown pages of the repository: their fenced blocks, links and headings.

The kinds of fenced blocks, by the words after the three backquotes:

- `bash`: commands that a test runs, in the order of the page, in one temporary copy of the repository;
- `python`: a program that is run at its place between these commands;
- `bash slow`, `python slow`: the same, run by the tests with the marker `slow` (downloads, minutes of work);
- `bash generator`: commands that take hours or several machines; a test checks that their programs and options exist;
- `output`: what the block before it prints; a test compares it line by line;
- every other language (`text`, `json`, `cpp`, `mermaid`): not run.
"""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent.parent
MARK = "### block "  # printed before each block's output, so that an output can be matched with its block
RUN = {"bash", "python"}
MEASURE_TOLERANCE = 0.25
NOT_RUN = {"text", "json", "cpp", "mermaid", "toml"}


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is where it begins in its page, counted from 1."""

    language: str
    words: tuple[str, ...]
    text: str
    line: int

    @property
    def slow(self) -> bool:
        return "slow" in self.words

    @property
    def generator(self) -> bool:
        return "generator" in self.words


@cache
def tracked_files() -> tuple[Path, ...]:
    """The files of the repository, relative to its root: those git knows and those it does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    paths = (Path(name) for name in sorted(set(listed.split("\0"))) if name)
    return tuple(path for path in paths if path.parts[0] != "shared" and (ROOT / path).is_file())


def pages() -> tuple[Path, ...]:
    return tuple(path for path in tracked_files() if path.suffix == ".md")


def tokens(page: Path) -> list[Token]:
    """The page's tokens, in order, with the inline ones after the paragraph they are in. Front matter is left out."""
    text = re.sub(r"\A---\n.*?\n---\n", lambda found: "\n" * found[0].count("\n"), read(page), flags=re.DOTALL)
    parsed = MarkdownIt("commonmark").enable("table").parse(text)
    return [each for token in parsed for each in (token, *(token.children or ()))]


def read(page: Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: Path) -> list[Block]:
    return [
        Block(words[0] if words else "", tuple(words[1:]), token.content, (token.map or [0])[0] + 1)
        for token in tokens(page)
        if token.type in ("fence", "code_block")
        for words in [token.info.split()]
    ]


def links(page: Path) -> Iterator[str]:
    """The targets of links and pictures, HTML tags `img` and `source` among them."""
    for token in tokens(page):
        if token.type in ("link_open", "image"):
            yield str(token.attrGet("href") or token.attrGet("src"))
        elif token.type in ("html_block", "html_inline"):
            yield from re.findall(r'(?:src|srcset|href)="([^"]+)"', token.content)


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to the page's headings."""
    found: list[str] = []
    parsed = MarkdownIt("commonmark").parse(read(page))
    for opening, inline in pairwise(parsed):
        if opening.type == "heading_open":
            slug = re.sub(r"[^\w\- ]", "", inline.content.lower()).replace(" ", "-")
            found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


def inline_code(page: Path) -> Iterator[str]:
    return (token.content for token in tokens(page) if token.type == "code_inline")


def script(chosen: list[Block]) -> str:
    """One bash program of the blocks; it stops at the first command that fails."""
    parts = ["set -euo pipefail"]
    for block in chosen:
        parts.append(f"echo '{MARK}{block.line}'")
        parts.append(block.text if block.language == "bash" else f"python - <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK")
    return "\n".join(parts) + "\n"


def outputs(printed: str) -> dict[int, str]:
    """What each block printed, by the line of the block."""
    parts = re.split(rf"^{re.escape(MARK)}(\d+)\n", printed, flags=re.MULTILINE)
    return {int(line): text for line, text in zip(parts[1::2], parts[2::2], strict=True)}


def missing_lines(expected: str, printed: str) -> list[str]:
    """Lines of `expected` that `printed` does not have in this order.

    Spaces count as one, and `...` is any text. In lines with `±`, which are measured, numbers with a decimal point may
    differ by a quarter: processors round differently.
    """
    rest = iter(_plain(line) for line in printed.splitlines())
    missing = []
    for line in filter(None, map(_plain, expected.splitlines())):
        if not any(_alike(line, candidate) for candidate in rest):
            missing.append(line)
    return missing


def _alike(line: str, candidate: str) -> bool:
    if "±" not in line:
        pattern = ".*".join(map(re.escape, re.split(r"\s*\.\.\.\s*", line)))
        return re.fullmatch(pattern, candidate) is not None
    words, others = line.split(), candidate.split()
    return len(words) == len(others) and all(map(_same_measure, words, others))


def _same_measure(word: str, other: str) -> bool:
    if word == other:
        return True
    number = r"[0-9]+\.[0-9]+(e-?[0-9]+)?"
    if not (re.fullmatch(number, word) and re.fullmatch(number, other)):
        return False
    return abs(float(word) - float(other)) <= MEASURE_TOLERANCE * max(float(word), float(other))


def _plain(line: str) -> str:
    return " ".join(line.split())
