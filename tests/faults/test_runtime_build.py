"""`runtime build`: it checks the hash of the archive, unpacks only into its folder, and uses only private folders."""

import io
import os
import tarfile

import pytest

from shareatt_export.errors import RuntimeProblem
from shareatt_export.llamacpp.pin import pin
from shareatt_export.llamacpp.source import unpack

pytestmark = pytest.mark.fault("M")

BACKEND = "open({marker!r}, 'w').close()\n"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A cache folder that does not exist yet."""
    monkeypatch.setenv("SHAREATT_EXPORT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def archive(path, *members, **texts):
    with tarfile.open(path, "w:gz") as made:
        for name, text in texts.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            made.addfile(info, io.BytesIO(text.encode()))
        for name, type, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = type, link
            made.addfile(info)
    return path


MEMBERS = {
    "above": ("../evil", tarfile.REGTYPE, ""),
    "above, further in": ("a/b/../../../evil", tarfile.REGTYPE, ""),
    "absolute": ("/tmp/evil", tarfile.REGTYPE, ""),
    "a folder above": ("../evil", tarfile.DIRTYPE, ""),
    "a symbolic link": ("a/link", tarfile.SYMTYPE, "../.."),
    "a hard link": ("a/link", tarfile.LNKTYPE, "../../evil"),
    "a pipe": ("a/pipe", tarfile.FIFOTYPE, ""),
    "a device": ("a/null", tarfile.CHRTYPE, ""),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_archives_that_reach_out(tmp_path, name):
    made = archive(tmp_path / "a.tar.gz", MEMBERS[name], **{"a/first": "text"})
    with pytest.raises(RuntimeProblem, match="is not a file inside of it; nothing was unpacked"):
        unpack(made, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [made]


def test_a_sound_archive(tmp_path):
    unpack(archive(tmp_path / "a.tar.gz", ("a/b", tarfile.DIRTYPE, ""), **{"a/first": "text"}), tmp_path / "out")
    assert (tmp_path / "out" / "a" / "first").read_text() == "text" and (tmp_path / "out" / "a" / "b").is_dir()


def test_an_archive_of_another_hash_is_not_even_looked_into(run, home, tmp_path, monkeypatch):
    """pip would run the build backend of the archive to read its metadata."""
    stem, marker = f"{pin().package.replace('-', '_')}-{pin().version}", tmp_path / "was run"
    texts = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": BACKEND.format(marker=str(marker)),
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {pin().package}\nVersion: {pin().version}\n",
    }
    (tmp_path / "index").mkdir()
    archive(tmp_path / "index" / f"{stem}.tar.gz", **{f"{stem}/{name}": text for name, text in texts.items()})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    done = run("runtime", "build")
    assert done.status == 1 and not marker.exists() and not list(home.glob("llama*"))
    assert "HASH" in done.error.upper()


def test_the_cache_folder_is_the_users_alone(run, home, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert run("runtime", "build").status == 1
    assert home.stat().st_mode & 0o777 == 0o700
    for mode in (0o720, 0o702):
        home.chmod(mode)
        assert f"{home}: others can write there; run 'chmod go-w {home}', or set" in run("runtime", "build").error
    home.chmod(0o755)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert f"{home}: belongs to another user" in run("runtime", "build").error
