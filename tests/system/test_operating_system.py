"""What Windows and macOS do differently, with stand-ins for the functions of Windows. Nothing here runs on Windows."""

import ctypes
import errno
import importlib
import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from shareatt_export.errors import OutputRefused
from shareatt_export.system import operating_system, process_group
from tests.support import small_gguf

ROOT = Path(__file__).parents[2]


class Msvcrt(types.ModuleType):
    """locking() of Windows: a lock belongs to a file descriptor, and LK_LOCK gives up after ten seconds."""

    LK_LOCK, LK_NBLCK = 1, 2

    def __init__(self) -> None:
        super().__init__("msvcrt")
        self.owners = {}
        self.waits = 0

    def locking(self, file, mode, n):
        assert n == 1 and os.lseek(file, 0, os.SEEK_CUR) == 0
        identity = os.fstat(file).st_ino
        if self.owners.setdefault(identity, file) == file:
            return
        if mode == self.LK_NBLCK:
            raise PermissionError(errno.EACCES, "Permission denied")
        self.waits += 1
        if self.waits == 3:
            self.owners.clear()
        raise OSError(errno.EDEADLK, "Resource deadlock avoided")


def on(monkeypatch, platform, module=operating_system, **modules):
    """Return a copy of a module as it is on another platform."""
    monkeypatch.setattr(sys, "platform", platform)
    for name, stand_in in modules.items():
        monkeypatch.setitem(sys.modules, name, stand_in)
    spec = importlib.util.spec_from_file_location(module.__name__, module.__file__)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


@pytest.fixture
def windows(monkeypatch):
    return on(monkeypatch, "win32", msvcrt=Msvcrt(), fcntl=None)


@pytest.fixture(params=["this system", "windows"])
def system(request):
    return operating_system if request.param == "this system" else request.getfixturevalue("windows")


def test_only_one_has_the_lock_of_a_folder(system, tmp_path):
    first = system.open_folder_lock(tmp_path, make=True)
    second = system.open_folder_lock(tmp_path, make=False)
    system.lock(first, wait=False)
    with pytest.raises(BlockingIOError):
        system.lock(second, wait=False)
    os.close(first)
    os.close(second)


def test_windows_waits_longer_than_ten_seconds_for_a_lock(windows, tmp_path):
    first, second = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    windows.lock(first, wait=True)
    windows.lock(second, wait=True)
    assert sys.modules["msvcrt"].waits == 3
    with pytest.raises(OSError, match="Bad file descriptor"):
        windows.lock(1 << 20, wait=True)


def test_a_folder_without_a_lock_and_a_link_have_none(system, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    with pytest.raises(OSError):
        system.open_folder_lock(tmp_path / "link", make=True)
    with pytest.raises(OSError):
        system.open_folder_lock(tmp_path / "none", make=False)
    assert list((tmp_path / "folder").iterdir()) == []


def test_windows_syncs_only_files_that_may_be_written(system, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"data")
    synced = []

    def fsync(file):
        synced.append(os.fstat(file).st_ino)
        if system is not operating_system:
            os.pwrite(file, b"", 0)  # fails where the file is open for reading

    monkeypatch.setattr(os, "fsync", fsync)
    system.sync_file(tmp_path / "file")
    system.sync_folder(tmp_path)
    files = [tmp_path / "file", tmp_path][: 1 if system is not operating_system else 2]
    assert synced == [path.stat().st_ino for path in files] and (tmp_path / "file").read_bytes() == b"data"


def test_a_file_that_a_program_has_open_is_an_error_with_a_next_step(windows, tmp_path, monkeypatch):
    def refused(self, target):
        raise PermissionError(errno.EACCES, "The process cannot access the file", str(self))

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(OutputRefused, match=r"out\.gguf: cannot be replaced; close the programs"):
        windows.replace(tmp_path / "new", tmp_path / "out.gguf")
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(PermissionError):
        operating_system.replace(tmp_path / "new", tmp_path / "out.gguf")


def test_windows_waits_for_the_program_that_takes_its_place(windows):
    with pytest.raises(SystemExit) as exit:
        windows.replace_process([sys.executable, "-c", "raise SystemExit(7)"], dict(os.environ))
    assert exit.value.code == 7


def test_names_of_programs_and_libraries(monkeypatch, windows):
    assert windows.shared_library("ggml-base") == "ggml-base.dll" and windows.program("llama-cli") == "llama-cli.exe"
    mac = on(monkeypatch, "darwin", fcntl=types.ModuleType("fcntl"))
    assert mac.shared_library("ggml-base") == "libggml-base.dylib" and mac.program("llama-cli") == "llama-cli"
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert mac.n_usable_cpus() == windows.n_usable_cpus() == os.cpu_count()
    assert errno.EINVAL in windows.NO_HARD_LINKS and errno.EINVAL not in mac.NO_HARD_LINKS


# ---------------------------------------------------------------- job objects


class Kernel:
    """The functions of kernel32 that a job object needs; they note what is done."""

    def __init__(self) -> None:
        self.done = []

    def function(self, name, result):
        def call(*arguments):
            self.done.append((name, [getattr(each, "value", each) for each in arguments]))
            return result

        return call

    def __getattr__(self, name):
        call = self.function(name, 0x123)
        setattr(self, name, call)
        return call


def test_windows_ends_children_with_a_job_object(monkeypatch):
    kernel = Kernel()
    monkeypatch.setattr(ctypes, "WinDLL", lambda name, use_last_error: kernel, raising=False)
    module = on(monkeypatch, "win32", process_group)
    group = module.process_group()
    group.add(types.SimpleNamespace(_handle=77))
    group.stop()
    group.close()
    names = [name for name, _ in kernel.done]
    assert names == [
        "CreateJobObjectW", "SetInformationJobObject", "AssignProcessToJobObject", "TerminateJobObject", "CloseHandle",
    ]  # fmt: skip
    job, information, limits, size = kernel.done[1][1]
    assert (job, information, size) == (0x123, 9, 144 if sys.maxsize > 2**32 else 112)
    assert limits._obj.flags == 0x2000 and type(limits._obj).flags.offset == 16  # KILL_ON_JOB_CLOSE
    assert kernel.done[2][1] == [0x123, 77] and kernel.done[4][1] == [0x123]


# ---------------------------------------------------------------- the tool without what only POSIX has

WITHOUT_POSIX = """
import os, sys, types
import click, ctypes, numpy, gguf, rich.console, rich.table, rich.progress, subprocess, tempfile, shutil
import scipy.linalg, scipy.optimize, scipy.stats
import concurrent.futures, importlib.metadata, platform, secrets, tarfile, click_default_group, runpy
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("sched_getaffinity", "geteuid", "killpg", "O_DIRECTORY", "O_NOFOLLOW", "fork", "pwrite", "pread"):
    if hasattr(os, name):
        delattr(os, name)
msvcrt = types.ModuleType("msvcrt")
msvcrt.LK_LOCK, msvcrt.LK_NBLCK, msvcrt.locking = 1, 2, lambda file, mode, n: None
sys.modules["msvcrt"] = msvcrt
sys.platform = "win32"
"""
RUN = WITHOUT_POSIX + "from shareatt_export.cli.main import main\nmain()\n"
IMPORT = (
    WITHOUT_POSIX
    + """
import importlib, pathlib
for path in sorted(pathlib.Path("shareatt_export").rglob("*.py")):
    name = ".".join(path.with_suffix("").parts)
    if not any(part in name for part in ("heal", "checkpoint.rewrite", "__main__")):  # they load torch, or run
        importlib.import_module(name.removesuffix(".__init__"))
"""
)


def without_posix(script, *arguments):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_is_imported_without_posix():
    without_posix(IMPORT)


def test_export_inspect_and_verify_work_without_posix(tmp_path):
    dense, sa = small_gguf.write_dense(tmp_path / "dense.gguf"), tmp_path / "sa.gguf"
    for force in ((), ("--force",)):
        without_posix(RUN, "export", dense, "--spans", "2-4", "-o", sa, *force)
    assert "layer 2 computes" in without_posix(RUN, "inspect", sa)
    without_posix(RUN, "verify", sa, "--against", dense)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense.gguf", "sa.gguf"]


def test_a_build_on_windows_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setenv("SHAREATT_EXPORT_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "win32")
    assert "cannot be built on Windows yet; use WSL" in run("runtime", "build").error
