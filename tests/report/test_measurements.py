"""Which command wrote a file, and files that none wrote."""

import pytest

from shareatt_export.errors import BadInput, one_line
from shareatt_export.report.measurements import KEYS, LARGEST, measurement, read_measurements

NEXT = "name files that analyze, search, eval or bench wrote with --json or -o"


def test_the_command_of_each_file(measured):
    assert [each.kind for each in measured.values()] == list(KEYS)


def test_all_files_of_a_model_have_one_identity(measured):
    assert len({each.identity for each in measured.values()}) == 1
    (identity,) = {each.identity for each in measured.values()}
    assert len(identity) == 64


def test_without_a_hash_the_path_is_the_identity(data):
    for report in data.values():
        del report["provenance"]
    found = {measurement(report, "x.json").identity for report in data.values()}
    assert found == {data["layers"]["model"]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "is not a JSON file"),
        ("", "is not a JSON file"),
        ("[" * 100_000, "is not a JSON file"),
        ("[]", "no command of this tool wrote it"),
        ('{"model": "a", "results": {}}', "no command of this tool wrote it"),
        ('"similarity pairs model"', "no command of this tool wrote it"),
    ],
)
def test_other_files(tmp_path, content, expected):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(BadInput) as error:
        read_measurements(path)
    assert str(error.value) == one_line(str(error.value)) == f"{path}: {expected}; {NEXT}"


def test_a_file_that_is_not_there_or_too_large(tmp_path):
    with pytest.raises(BadInput, match="none.json: No such file or directory"):
        read_measurements(tmp_path / "none.json")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(BadInput, match="is larger than 64 MiB"):
        read_measurements(tmp_path / "large.json")


def test_a_file_without_a_model():
    found = measurement({key: [] for key in KEYS["eval"]} | {"text": {}}, "x.json")
    with pytest.raises(BadInput, match=r"x\.json: model: is missing"):
        _ = found.model
