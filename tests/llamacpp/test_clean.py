"""`runtime clean` removes what it knows and nobody uses, and nothing else."""

import json
import os
import time

import pytest

from shareatt_export.llamacpp.build import locked
from shareatt_export.llamacpp.pin import patch_id, pin

OLD = (
    "runtime-0123456789ab",
    "wheel-0123456789ab",
    "wheel-0123456789ab-linux-x86_64",
    "unpatched-0123abcde",
    "llama-cpp-python-0.3.1",
    ".fetch-old",
    "upstream-tests/patched-0123456789ab",
    "upstream-tests/unpatched-0123abcde",
)
CURRENT = (f"runtime-{patch_id()}", f"wheel-{patch_id()}", f"unpatched-{pin().llama_cpp_commit}",
           f"llama-cpp-python-{pin().version}", f"upstream-tests/patched-{patch_id()}")  # fmt: skip
FOREIGN = ("models", "runtime-mine", "my-runtime-0123456789ab", "upstream-tests/notes", "llama.cpp", "unpatched-")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with folders of 1000 bytes each."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    for name in (*OLD, *CURRENT, *FOREIGN):
        (home / name).mkdir(parents=True)
        (home / name / "data").write_bytes(bytes(1000))
    (home / "build-options.json").write_text("[]")
    os.utime(home / ".fetch-old", (0, 0))
    monkeypatch.setenv("SHAREATT_EXPORT_HOME", str(home))
    return home


def present(cache, names):
    return [name for name in names if (cache / name / "data").is_file()]


def test_old_folders_go_and_the_others_stay(run, cache):
    done = run("runtime", "clean")
    assert done.status == 0 and done.stdout.endswith(f"{len(OLD) * 1000 / 1024:.2f} KiB removed\n")
    assert present(cache, OLD) == [] and present(cache, CURRENT) == list(CURRENT)
    assert present(cache, FOREIGN) == list(FOREIGN) and (cache / "build-options.json").is_file()


def test_all_removes_the_current_ones_too(run, cache):
    assert run("runtime", "clean", "--all").status == 0
    assert present(cache, (*OLD, *CURRENT)) == [] and not (cache / "build-options.json").exists()
    assert present(cache, FOREIGN) == list(FOREIGN)


@pytest.mark.parametrize("options", [[], ["--all"]])
def test_a_dry_run_lists_the_same_and_removes_nothing(run, cache, options):
    listed = json.loads(run("runtime", "clean", "--dry-run", "--json", *options).stdout)
    assert listed["dry_run"] and present(cache, (*OLD, *CURRENT)) == [*OLD, *CURRENT]
    removed = json.loads(run("runtime", "clean", "--json", *options).stdout)
    assert not removed["dry_run"] and removed["entries"] == listed["entries"]
    gone = {each["path"]: each["n_bytes"] for each in removed["entries"] if each["kept"] is None}
    assert {str(cache / name) for name in OLD} <= gone.keys() and gone[str(cache / OLD[0])] == 1000
    assert all(not (cache / path).exists() for path in gone)


@pytest.mark.parametrize("options", [[], ["--all"]])
def test_what_a_build_has_locked_stays(run, cache, options):
    with locked(cache / OLD[0]), locked(cache / CURRENT[0]):
        done = run("runtime", "clean", *options)
    assert "a build uses it" in done.stdout and present(cache, (OLD[0], CURRENT[0])) == [OLD[0], CURRENT[0]]
    assert run("runtime", "clean", *options).status == 0 and present(cache, OLD) == []


def test_a_download_may_still_run(run, cache):
    os.utime(cache / ".fetch-old", (time.time(),) * 2)
    assert "a download may run" in run("runtime", "clean", "--all").stdout
    assert present(cache, [".fetch-old"])


def test_links_and_what_they_point_to_stay(run, cache, tmp_path):
    outside = tmp_path / "outside"
    (outside / "patched-0123456789ab").mkdir(parents=True)
    (outside / "patched-0123456789ab" / "data").touch()
    (cache / "runtime-ffffffffffff").symlink_to(outside)
    (cache / OLD[0] / "inner").symlink_to(outside)
    (cache / "upstream-tests").rename(cache / "moved")
    (cache / "upstream-tests").symlink_to(outside)
    done = run("runtime", "clean", "--all")
    assert "a link; remove it by hand" in done.stdout and (cache / "runtime-ffffffffffff").is_symlink()
    assert (outside / "patched-0123456789ab" / "data").is_file() and not (cache / OLD[0]).exists()


def test_a_cache_that_others_can_write_to_is_refused(run, cache):
    cache.chmod(0o777)
    assert "others can write there" in run("runtime", "clean").error and present(cache, OLD) == list(OLD)


def test_without_a_cache_there_is_nothing_to_do(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SHAREATT_EXPORT_HOME", str(tmp_path / "none"))
    assert run("runtime", "clean").stdout.endswith("0 B removed\n") and not (tmp_path / "none").exists()
