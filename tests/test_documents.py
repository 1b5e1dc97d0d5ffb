"""The pages of the repository say what is true: their commands run, their outputs are printed, their links resolve."""

import argparse
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import click
import pytest

from shareatt_export.cli.main import cli
from tests.support import documents
from tests.support.documents import ROOT, Block

PAGES = documents.pages()
README_LINES = 150
FOLDERS = ("tests", "scripts", "docs", "examples", "cpp_patch", "shareatt_export", ".github", ".ci")


def to_run(page: Path, slow: bool) -> list[Block]:
    found = documents.blocks(page)
    return [b for b in found if b.language in documents.RUN and not b.generator and b.slow == slow]


def environment() -> dict[str, str]:
    """This Python's programs first; threads that wait do not take the processor."""
    first = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    return os.environ | {"PATH": os.pathsep.join(first), "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}


def run(command: list[str], folder: Path) -> str:
    """Run a command in a folder and return what it printed. Its output goes to the error of a failed test."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    printed = done.stdout.decode(errors="replace")
    assert done.returncode == 0, printed[-4000:]
    return printed


def check(page: Path, slow: bool, folder: Path) -> None:
    """Run the blocks of a page in a copy of the repository, and compare the outputs that the page shows."""
    for path in documents.tracked_files():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    printed = documents.outputs(run(["bash", "-c", documents.script(to_run(page, slow))], folder))
    found = documents.blocks(page)
    for block, shown in pairwise(found):
        if shown.language == "output" and block.line in printed:
            missing = documents.missing_lines(shown.text, printed[block.line])
            assert not missing, f"{page}:{shown.line}: not printed: {missing}\n{printed[block.line][-4000:]}"


@pytest.mark.parametrize("page", [page for page in PAGES if to_run(page, slow=False)], ids=str)
def test_commands_run_and_print_what_the_page_shows(built, tmp_path, page):
    check(page, False, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if to_run(page, slow=True)], ids=str)
def test_slow_commands_run_and_print_what_the_page_shows(built, tmp_path, page):
    check(page, True, tmp_path)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.*")), ids=lambda path: path.name)
def test_examples_run(built, tmp_path, example):
    if example.suffix == ".md":
        return
    run([{".sh": "bash", ".py": sys.executable}[example.suffix], str(example), str(tmp_path)], ROOT)
    assert any(tmp_path.iterdir()), "the example writes into the folder that it is given"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_block_says_what_it_is(page):
    known = documents.RUN | documents.NOT_RUN | {"output"}
    found = documents.blocks(page)
    for i, block in enumerate(found):
        assert block.language in known, f"{page}:{block.line}: indented, unlabelled or of an unknown language"
        assert set(block.words) <= {"slow", "generator"}, f"{page}:{block.line}: {block.words}"
        if block.language == "output":
            before = found[i - 1] if i else block
            assert before.language in documents.RUN and not before.generator, f"{page}:{block.line}: of no command"
        if block.language == "text":
            assert not re.search(r"^\s*\$ ", block.text, re.MULTILINE), (
                f"{page}:{block.line}: a command in a text block"
            )


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_resolve(page):
    for target in documents.links(page):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page.parent / name).resolve() if name else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in documents.anchors(file.relative_to(ROOT)), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_paths_and_commands_in_the_text_exist(page):
    for code in documents.inline_code(page):
        if re.fullmatch(rf"({'|'.join(map(re.escape, FOLDERS))})/[\w./-]+(::\w+)?", code):
            name, _, test = code.partition("::")
            assert (ROOT / name).exists(), f"{page}: {code}"
            assert not test or f"def {test}(" in (ROOT / name).read_text(), f"{page}: {code}"
        elif code.startswith(("shareatt-export ", "python ", "scripts/")) and "\n" not in code:
            check_command(page, code)


@pytest.mark.parametrize("page", [page for page in PAGES if any(b.generator for b in documents.blocks(page))], ids=str)
def test_generators_exist(page):
    for block in documents.blocks(page):
        for line in block.text.replace("\\\n", " ").splitlines() if block.generator else ():
            if line.split("#")[0].strip():
                check_command(page, line)


def check_command(page: Path, text: str) -> None:
    """The program of a command line exists and takes its arguments."""
    words = shlex.split(text.partition(" > ")[0], comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    words = [re.sub(r".*/bin/(?=\w+$)", "", words[0]), *words[1:]]
    if words[0] == "shareatt-export":
        check_options(page, text, words[1:])
    elif words[0] == "python" and words[1] == "-m":
        path = ROOT / words[2].replace(".", "/")
        path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        assert path.is_file() or words[2] in ("pip", "venv", "zipfile", "build"), f"{page}: {text}"
        if path.is_file():
            check_arguments(page, text, path, words[3:])
    elif words[0] == "python" and words[1].endswith(".py"):
        check_arguments(page, text, ROOT / words[1], words[2:])
    elif words[0].startswith("scripts/"):
        assert os.access(ROOT / words[0], os.X_OK), f"{page}: {text}: is no program"


class Parsed(Exception):
    """A script has parsed its arguments."""


def check_arguments(page: Path, text: str, path: Path, arguments: list[str]) -> None:
    """Run a script until it has parsed its arguments. One without a parser takes none, or reads sys.argv itself."""
    source = path.read_text()
    if "ArgumentParser" not in source:
        assert not arguments or "sys.argv" in source, f"{page}: {text}: {path.name} takes no arguments"
        return
    parse_args = argparse.ArgumentParser.parse_args

    def parse(parser: argparse.ArgumentParser) -> None:
        parse_args(parser)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        patch.setattr(sys, "argv", [str(path), *arguments])
        patch.setattr(sys, "path", [str(path.parent), *sys.path])
        try:
            runpy.run_path(str(path), run_name="__main__")
        except Parsed:
            return
        except SystemExit:
            pytest.fail(f"{page}: {text}: see the usage of {path.name}")
        except ModuleNotFoundError as error:
            assert error.name == "ziglang", error  # the cross compiler, which is not installed for tests
            return
    pytest.fail(f"{page}: {text}: {path.name} did not parse its arguments")


def check_options(page: Path, text: str, words: list[str]) -> None:
    command: click.Command = cli
    context = click.Context(cli)
    if words[:1] and not (words[0].startswith("-") or words[0] in cli.commands):
        words = ["export", *words]
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    if command.context_settings.get("ignore_unknown_options"):
        return  # all arguments are for another program
    words = words[: words.index("--")] if "--" in words else words
    known = {name for p in command.get_params(context) for name in (*p.opts, *p.secondary_opts)} | {"-h", "--help"}
    for word in words:
        if re.match(r"--?[a-z]", word):
            assert word.split("=")[0] in known, f"{page}: {text}: no option {word}"


def test_the_table_of_savings_is_what_its_script_prints():
    printed = run([sys.executable, "scripts/savings.py"], ROOT)
    assert printed.strip() and printed in documents.read(Path("docs/speed.md"))


def test_the_readme_is_short():
    assert len(documents.read(Path("README.md")).splitlines()) <= README_LINES


# ---------------------------------------------------------------- the checks see what is wrong


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """A page in a repository of its own, for the checks to look at."""
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)

    def write(text: str) -> Path:
        (tmp_path / "page.md").write_text(text)
        return Path("page.md")

    return write


@pytest.mark.parametrize(
    ("checker", "text"),
    [
        (test_every_block_says_what_it_is, "Run this:\n\n    shareatt-export inspect a.gguf\n"),
        (test_every_block_says_what_it_is, "```\nshareatt-export inspect a.gguf\n```\n"),
        (test_every_block_says_what_it_is, "```sh\nls\n```\n"),
        (test_every_block_says_what_it_is, "```bash later\nls\n```\n"),
        (test_every_block_says_what_it_is, "```text\n$ ls\n```\n"),
        (test_every_block_says_what_it_is, "```output\nof nothing\n```\n"),
        (test_links_resolve, "[a](none.md)"),
        (test_links_resolve, "# One\n\n[a](#two)"),
        (test_links_resolve, '<img src="docs/images/none.svg">'),
        (test_paths_and_commands_in_the_text_exist, "see `tests/none.py`"),
        (test_paths_and_commands_in_the_text_exist, "`shareatt-export --no-such-option`"),
        (test_paths_and_commands_in_the_text_exist, "`shareatt-export eval a.gguf b.gguf --refit`"),
        (test_generators_exist, "```bash generator\npython -m tests.support.none > docs/none.md\n```\n"),
        (test_generators_exist, "```bash generator\nscripts/none.sh\n```\n"),
    ],
)
def test_a_wrong_page_is_seen(made_up, checker, text):
    with pytest.raises(AssertionError):
        checker(made_up(text))


def test_a_wrong_command_or_output_is_seen(monkeypatch, made_up, tmp_path):
    monkeypatch.setattr(documents, "tracked_files", lambda: ())
    check(
        made_up("```bash\necho a   b; echo c\n```\n\n```output\na b\n...\n```\n\n```python\nprint(1)\n```\n"),
        False,
        tmp_path,
    )
    check(made_up("```bash\necho KL 0.18 ± 0.06 of 7\n```\n\n```output\nKL 0.20 ± 0.05 of 7\n```\n"), False, tmp_path)
    for wrong in ("KL 0.30 ± 0.06 of 7", "KL 0.18 ± 0.06 of 8", "KL 0.18 ± 0.06"):
        with pytest.raises(AssertionError, match="not printed"):
            check(made_up(f"```bash\necho KL 0.18 ± 0.06 of 7\n```\n\n```output\n{wrong}\n```\n"), False, tmp_path)
    with pytest.raises(AssertionError, match="not printed"):
        check(made_up("```bash\necho a\n```\n\n```output\nb\n```\n"), False, tmp_path)
    with pytest.raises(AssertionError):
        check(made_up("```bash\nfalse | cat\n```\n"), False, tmp_path)
    with pytest.raises(AssertionError):
        check(made_up("```python\nraise ValueError\n```\n"), False, tmp_path)
