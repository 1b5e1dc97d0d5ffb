"""Settings of the site, which `scripts/build_site.sh` builds with Sphinx.

The pages are the repository's own Markdown files, where they are: the folder of sources is the root of the repository.
What Markdown cannot say stands here: the navigation, and where links to files that are no pages lead. The reference of
the Python functions is made from their docstrings, see describe_fields().
"""

import ast
import inspect
import re
import shutil
import tomllib
from dataclasses import is_dataclass
from pathlib import Path

from docutils import nodes
from pygments.lexers.special import TextLexer
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAVIGATION = {  # the part of the sidebar, and its pages by the titles that they have there
    "Start": {
        "Concepts and terms": "docs/concepts",
        "Choosing a map": "docs/choosing",
        "Examples": "examples/README",
        "Troubleshooting": "docs/troubleshooting",
    },
    "Guides": {
        "Quality": "docs/quality",
        "Similarity": "docs/similarity",
        "Benchmarks": "docs/benchmarks",
        "Healing": "docs/healing",
        "Memory and speed": "docs/speed",
        "Runtime": "docs/runtime",
        "GPUs": "docs/gpu",
    },
    "Reference": {
        "Commands": "docs/commands",
        "Python": "docs/python-api",
        "Python: functions and types": "docs/api",
        "File format": "docs/file-format",
        "Architectures": "docs/ARCHITECTURES",
        "Changelog": "CHANGELOG",
    },
    "Proof": {
        "How it is proven": "docs/proof",
        "Runtime against reference": "docs/parity",
        "Every way to use a model": "docs/features",
        "llama.cpp's own tests": "docs/upstream-tests",
        "Reliability": "docs/RELIABILITY",
        "Security": "SECURITY",
    },
    "Development": {
        "Contributing": "CONTRIBUTING",
        "The patch": "cpp_patch/README",
        "Pages of docs/": "docs/README",
        "Demo model stdlib-5m": "tests/models/stdlib-5m/README",
        "Demo model stdlib-3m-mha": "tests/models/stdlib-3m-mha/README",
    },
}

REPORTS = Path("docs/reports")  # pages that `shareatt-export report` made
FIELDS = "Attributes:"  # begins the part of a docstring that describes each field
SHORT, LONG = 24, 60  # characters, see mark_lengths()
logger = logging.getLogger(__name__)

project, version = PROJECT["name"], PROJECT["version"]
root_doc = "README"
# a page of docs/ that NAVIGATION forgets is read all the same, and Sphinx warns that no toctree has it
include_patterns = ["README.*", "docs/*", *(f"{page}.*" for part in NAVIGATION.values() for page in part.values())]
exclude_patterns = [".*", "build", "venv"]  # folders in which no page is looked for
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 4

autodoc_mock_imports = ["torch", "transformers"]  # the results of heal() are imported for their docstrings alone
default_role = "code"  # `name` in docstrings, as in Markdown
smartquotes = False  # the name of an option keeps its two hyphens
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_use_index = False


def add_navigation(app: Sphinx, page: str, source: list[str]) -> None:
    """Append the navigation to the front page, where it is hidden and only fills the sidebar."""
    if page == root_doc:
        for caption, pages in NAVIGATION.items():
            entries = [f"{title} <{path}>" for title, path in pages.items()]
            source[0] += "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", *entries, "```", ""])


def link_to_files(app: Sphinx, doctree: nodes.document) -> None:
    """Let links to files that are no pages lead to the repository instead of to copies of the files.

    Reports are pages of their own, which copy_reports() puts into the site.
    """
    for link in list(doctree.findall(addnodes.download_reference)):
        path, _ = app.env.relfn2path(link["reftarget"], app.env.docname)
        is_report = Path(path).parent == REPORTS
        address = link["reftarget"] if is_report else f"{PROJECT['urls']['Homepage']}/blob/main/{path}"
        link.replace_self(nodes.reference("", "", *link.children, refuri=address))


def mark_lengths(app: Sphinx, doctree: nodes.document) -> None:
    """Mark short and long texts for site.css: on phones tables scroll and figures such as "0.05 ± 0.04" stay whole."""
    for text in doctree.findall(lambda node: isinstance(node, (nodes.entry, nodes.literal))):
        length = len(text.astext())
        if length <= SHORT or length > LONG:
            text["classes"].append("short" if length <= SHORT else "long")


def hide_fields(app: Sphinx, what: str, *others: object) -> tuple[str, None] | None:
    """Show a class without the arguments that make it: they are its fields, which have entries of their own."""
    return ("", None) if what in ("class", "exception") else None


def describe_fields(app: Sphinx, what: str, name: str, documented: object, options: object, lines: list[str]) -> None:
    """Make an entry of each field that a docstring describes, with the type and the default that its source has.

    Sphinx alone would show evaluated ones: unions for the names of types, and the processors of this machine.
    """
    declared: dict[str, ast.AnnAssign] = {}
    if is_data := isinstance(documented, type) and is_dataclass(documented):
        (made,) = ast.parse(inspect.getsource(documented)).body
        declared = {ast.unparse(each.target): each for each in made.body if isinstance(each, ast.AnnAssign)}
    start = lines.index(FIELDS) if FIELDS in lines else len(lines)
    described, lines[start:] = lines[start + 1 :], []
    for line in described:
        if not (found := re.fullmatch(r" {4}(\w+): (.+)", line)):
            lines.append(f"   {line.strip()}")
            continue
        lines += ["", f".. attribute:: {found[1]}"]
        if field := declared.pop(found[1], None):
            written = ast.unparse(field.annotation).strip("'")
            lines.append(f"   :type: {written}")
            lines += [f"   :value: {ast.unparse(field.value)}"] if field.value else []
        elif is_data:
            logger.warning("%s: %s is no field", name, found[1])
        lines += ["", f"   {found[2]}"]
    if declared:
        logger.warning("%s: no description of %s", name, ", ".join(declared))


def add_index(app: Sphinx, error: Exception | None) -> None:
    """Give the front page the name by which servers and people find it."""
    if error is None:
        shutil.copy(app.outdir / f"{root_doc}.html", app.outdir / "index.html")


def copy_reports(app: Sphinx, error: Exception | None) -> None:
    """Put the reports where the links of link_to_files() lead."""
    if error is None:
        shutil.copytree(ROOT / REPORTS, app.outdir / REPORTS, dirs_exist_ok=True)


def setup(app: Sphinx) -> None:
    app.add_lexer("output", TextLexer)
    app.connect("source-read", add_navigation)
    app.connect("doctree-read", link_to_files)
    app.connect("doctree-read", mark_lengths)
    app.connect("autodoc-process-signature", hide_fields)
    app.connect("autodoc-process-docstring", describe_fields)
    app.connect("build-finished", add_index)
    app.connect("build-finished", copy_reports)
