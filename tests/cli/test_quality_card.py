"""`eval --card`: what was measured is in the card, and nothing else of the card changes."""

import hashlib
import shutil

import pytest
from huggingface_hub import ModelCard

import shareatt_export
from shareatt_export.cli.quality_card import BEGIN, END
from shareatt_export.formats.gguf_encode import raw_string
from tests.support import small_gguf, tiny_models

NOT_MEASURED = "What this costs in quality was not measured here."


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "a|b_c.txt"
    path.write_text((tiny_models.DEMO / "heldout.txt").read_text()[:2000])
    return path


@pytest.fixture
def sa(run, demo_dense, tmp_path):
    """An SA file with its card."""
    (tmp_path / "model").mkdir()
    run(demo_dense, "--spans", "6-9", "-o", tmp_path / "model" / "sa.gguf", "--card", "-q")
    return tmp_path / "model" / "sa.gguf"


@pytest.fixture
def measure(run, demo_dense, text):
    """A function that evaluates SA files, with one window of 16 tokens and one baseline."""

    def measure(*arguments):
        options = ("--text", text, "--ctx", 16, "--windows", 1, "--no-weights", "--card", "-q")
        return run("eval", demo_dense, *options, *arguments)

    return measure


def quality(card):
    before, _, rest = card.read_text().partition(f"{BEGIN}\n")
    section, _, after = rest.partition(f"{END}\n")
    return before, section, after


def test_the_card_says_what_was_measured(measure, sa, demo_dense, text):
    card = sa.with_name("README.md")
    before, section, after = quality(card)
    assert NOT_MEASURED in section and before.endswith("## Quality\n\n") and after.startswith("\n## Use\n")
    tasks = text.with_name("tasks.jsonl")
    tasks.write_text('{"prompt": "import", "choices": [" os", " x"], "answer": 0}\n')
    done = measure(sa, "--drop", "--tasks", tasks)
    assert done.status == 0 and "dense, K cache" in done.stdout
    assert quality(card)[::2] == (before, after)
    section = quality(card)[1]
    assert NOT_MEASURED not in section
    lines = [line for line in section.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert rows[0] == ["", "file bytes", "KV/token", "perplexity", "change", "KL", "same top"]
    names = ["dense", "sa.gguf", r"dense, K cache q8\_0", "dense, no attention in 7-9"]
    assert [row[0] for row in rows[2:6]] == names
    assert rows[3][1:3] == [f"{sa.stat().st_size:,}", "4032"]
    assert [row[0] for row in rows[8::4]] == ["tasks.jsonl, acc", r"tasks.jsonl, acc\_norm"]
    assert [row[1] for row in rows[8:]] == 2 * names
    for line in (
        f"    shareatt-export eval {demo_dense} --text '{text}' --ctx 16 --windows 1",
        f"SHA-256 of the text: {hashlib.sha256(text.read_bytes()).hexdigest()}.",
        f"SHA-256 of the tasks: tasks.jsonl {hashlib.sha256(tasks.read_bytes()).hexdigest()}.",
        "7 tokens in 1 window of 16 of ",
        r"a\|b\_c.txt; the second half of each is scored.",
        "Runtime: llama.cpp ",
    ):
        assert line in section
    assert ModelCard.load(card).data.library_name == "gguf"


def test_the_author_of_a_card_may_change_all_the_rest(measure, sa):
    card = sa.with_name("README.md")
    text = (
        card.read_text().replace("## Quality", "# How good\u2028it is").replace("## Use", "<!-- mine -->\x0c\n## Use")
    )
    card.write_bytes(text.replace("\n", "\r\n").encode())
    card.chmod(0o640)
    measure(sa)
    once = card.read_bytes()
    assert once.count(b"\n") == once.count(b"\r\n") and card.stat().st_mode & 0o777 == 0o640
    before, section, after = (part.replace("\n", "\r\n").encode() for part in quality(card))
    assert once == b"".join((before, BEGIN.encode(), b"\r\n", section, END.encode(), b"\r\n", after))
    assert text.startswith(quality(card)[0]) and text.endswith(quality(card)[2])
    measure(sa)
    assert card.read_bytes() == once
    assert list(sa.parent.glob(".*")) == []


def test_a_model_whose_name_looks_like_a_marker(run, measure, demo_dense, tmp_path):
    name = f"a\n{BEGIN}\n# b | <b>\n{END}\n"
    dense = small_gguf.with_metadata(demo_dense, tmp_path / "dense.gguf", general__name=raw_string(name))
    run(dense, "--spans", "6-9", "-o", tmp_path / "sa.gguf", "--card", "-q")
    card = tmp_path / "README.md"
    assert f"\n# a {BEGIN} # b | <b> {END} SA6-9\n" in card.read_text()
    before, _, after = card.read_text().partition(f"\n{BEGIN}\n")
    assert measure(tmp_path / "sa.gguf").status == 0
    assert card.read_text().startswith(before) and NOT_MEASURED not in card.read_text()
    assert card.read_text().endswith(after.partition(f"\n{END}\n")[2])


def test_one_card_for_the_files_of_a_folder(measure, sa, tmp_path, demo_dense):
    """A card says nothing of files in other folders, and what only those were compared to."""
    half = shareatt_export.export(demo_dense, "every:2", sa.with_name("half.gguf")).files[0]
    (tmp_path / "other").mkdir()
    other = shareatt_export.export(demo_dense, "1-2", tmp_path / "other" / "other.gguf").files[0]
    card = sa.with_name("README.md")
    refused = measure(sa, half)
    next_step = "add the name to the card, if it is the card of this file"
    assert refused.error == f"Error: {card}: does not name half.gguf; {next_step}" and not refused.stdout
    card.write_text(card.read_text() + "half.gguf.\n")
    shutil.copy(card, other.with_name("README.md"))
    other.with_name("README.md").write_text(card.read_text().replace("sa.gguf", "other.gguf"))
    assert measure(sa, half, other, "--drop", "--combined").status == 0
    both, alone = (
        [line.split(" | ")[0].removeprefix("| ") for line in quality(path)[1].splitlines() if line.startswith("| ")][2:]
        for path in (card, other.with_name("README.md"))
    )
    q8_0, q5_1 = (rf"dense, K cache q{bits}" for bits in (r"8\_0", r"5\_1"))
    assert both == ["dense", "sa.gguf", "half.gguf", r"sa.gguf, K cache q8\_0", r"half.gguf, K cache q8\_0", q8_0, q5_1,
                    "dense, no attention in 7-9", "dense, no attention in 1,3,5,7,9,11"]  # fmt: skip
    assert alone == ["dense", "other.gguf", r"other.gguf, K cache q8\_0", q8_0, "dense, no attention in 2"]
    assert "half.gguf" not in quality(other.with_name("README.md"))[1].partition("| file bytes")[2]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: None, "no such file; an export with --card writes it"),
        (lambda text: b"\xff", "not UTF-8 text"),
        (lambda text: text.replace(END, "").encode(), "has not one place for the quality"),
        (lambda text: (text + END + "\n").encode(), "has not one place for the quality"),
        (lambda text: text.replace(BEGIN, "\0").replace(END, BEGIN).replace("\0", END).encode(), "has not one place"),
        (lambda text: text.replace("sa.gguf", "aa.sa.gguf").encode(), "does not name sa.gguf"),
    ],
)
def test_a_card_that_cannot_be_written_is_refused_before_anything_is_measured(measure, sa, change, problem):
    card = sa.with_name("README.md")
    changed = change(card.read_text())
    card.unlink() if changed is None else card.write_bytes(changed)
    done = measure(sa)
    assert done.error.startswith(f"Error: {card}: {problem}") and (done.status, done.stdout) == (1, "")
    assert done.stderr == f"{done.error}\n"
    assert (card.read_bytes() if card.exists() else None) == changed


def test_without_the_option_the_card_stays(run, sa, demo_dense, text):
    card = sa.with_name("README.md")
    before = card.read_text()
    run("eval", demo_dense, sa, "--text", text, "--ctx", 16, "--windows", 1, "--no-baselines")
    assert card.read_text() == before
