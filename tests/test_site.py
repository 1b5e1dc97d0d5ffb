"""The site of the documents: it builds without a warning, its links resolve, and it fetches nothing from elsewhere."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support import documents

FETCHED = ("src", "srcset", "data", "poster", "action")  # attributes whose addresses a browser fetches
MISTAKEN = '''
from dataclasses import dataclass


@dataclass
class Mistaken:
    """A result.

    Attributes:
        none: Nothing.
    """
'''
# Text that is added to a file, and what the build says of it.
MISTAKES = {
    "a link to no page": ("docs/proof.md", "[a](missing.md)", "cross-reference target not found: 'missing.md'"),
    "an anchor of no heading": ("docs/gpu.md", "[a](#missing)", "cross-reference target not found: 'missing'"),
    "an anchor of no heading elsewhere": (
        "docs/speed.md",
        "[a](gpu.md#missing)",
        "local id not found in doc 'docs/gpu'",
    ),
    "a picture that is not there": (
        "docs/healing.md",
        "![a](missing.png)",
        "image file not readable: docs/missing.png",
    ),
    "a page that the navigation lacks": ("docs/forgotten.md", "# Forgotten", "isn't included in any toctree"),
    "a function that is not there": (
        "docs/api.rst",
        ".. autofunction:: shareatt_export.missing",
        "failed to import 'missing'",
    ),
    "a field without a description": (
        "shareatt_export/benchmark/rows.py",
        "@dataclass\nclass Bare:\n    'A result.'\n\n    field: int",
        "Bare: no description of field",
    ),
    "a description of no field": ("shareatt_export/errors.py", MISTAKEN, "Mistaken: none is no field"),
}


class Page(HTMLParser):
    """What a page links to, what a browser fetches for it, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.anchors.add(value or "")
            elif name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in FETCHED or name == "href":
                self.fetched.append(value or "")


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [str(folder / "scripts" / "build_site.sh")]
    return subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    for path in documents.tracked_files():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(documents.ROOT / path, folder / path)
    return folder


@pytest.fixture(scope="module")
def pages(repository):
    """The pages of the site by their paths."""
    done = build(repository)
    assert (done.returncode, done.stderr) == (0, "")
    return {path: Page(path) for path in (repository / "build" / "site").rglob("*.html")}


def test_every_link_leads_to_a_page_and_an_anchor(pages):
    seen = 0
    for path, page in pages.items():
        for link in page.links:
            found = urlsplit(link)
            if found.scheme:
                continue
            target = (path.parent / unquote(found.path)).resolve() if found.path else path
            assert target in pages, f"{path.name}: {link}"
            assert unquote(found.fragment) in pages[target].anchors, f"{path.name}: {link}"
            seen += 1
    assert seen > 1000


def test_links_to_files_that_are_no_pages_lead_to_the_repository(pages):
    links = {link for page in pages.values() for link in page.links}
    assert "https://github.com/shareatt-export/shareatt-export/blob/main/examples/serve.py" in links


def test_no_page_fetches_anything_from_elsewhere(pages, repository):
    for path, page in pages.items():
        for address in page.fetched:
            assert not re.match(r"([a-z]+:)?//", address), f"{path.name}: {address}"
    for path in (repository / "build" / "site").rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?([a-z]+:)?//", path.read_text(encoding="utf-8")), path


@pytest.fixture(scope="module")
def said(pages, repository):
    """What the build says when every mistake is made, each in a file of its own."""
    for name, text, _ in MISTAKES.values():
        with (repository / name).open("a") as file:
            file.write(f"\n\n{text}\n")
    with (repository / "docs" / "api.rst").open("a") as file:
        file.write(
            "\n.. autoclass:: shareatt_export.benchmark.rows.Bare\n.. autoclass:: shareatt_export.errors.Mistaken\n"
        )
    done = build(repository)
    assert done.returncode == 1
    return done.stderr


@pytest.mark.parametrize(("name", "message"), [(name, message) for name, _, message in MISTAKES.values()], ids=MISTAKES)
def test_a_mistake_fails_the_build(said, name, message):
    lines = [line for line in said.splitlines() if message in line]
    assert len(lines) == 1
    assert name.endswith((".py", ".rst")) or f"/{name}:" in lines[0]
