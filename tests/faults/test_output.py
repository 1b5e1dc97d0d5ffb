"""Outputs that cannot or must not be written, and exports that are stopped: no file is changed or incomplete."""

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shareatt_export.cli import main as cli
from shareatt_export.cli import progress_bar
from shareatt_export.errors import OutputRefused, VerifyFailed
from shareatt_export.exporting.verify import verify
from shareatt_export.exporting.write import write_plan
from shareatt_export.formats import transfer
from shareatt_export.system import staging
from shareatt_export.system.progress import Step
from shareatt_export.system.staging import publish, staged
from tests.support import small_gguf, tiny_models
from tests.support.exports import export, plan_of
from tests.support.faults.folder_state import folder_state

pytestmark = pytest.mark.fault("I")


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return small_gguf.write_dense(tmp_path / "dense.gguf")


PLACES = {
    "a folder that is not there": ("no/out.gguf", "no/out.gguf: the folder", "does not exist"),
    "a file for a folder": ("dense.gguf/out.gguf", "dense.gguf/out.gguf: the folder", "does not exist"),
    "the input": ("dense.gguf", "dense.gguf: is the input itself", "name another output"),
    "the input by another path": ("folder/../dense.gguf", "is the input itself", "name another output"),
    "a symbolic link to the input": ("soft", "soft: is the input itself", "name another output"),
    "a hard link to the input": ("hard", "hard: is the input itself", "name another output"),
    "what exists": ("old.gguf", "old.gguf: exists already", "use --force"),
    "a pipe": ("pipe", "pipe: exists and is not a regular file", "name another output"),
    "a link to nothing": ("dangling", "dangling: exists and is not a regular file", "name another output"),
    "a device": ("/dev/full", "/dev/full: exists and is not a regular file", "name another output"),
    "where nobody can write": (
        "/proc/self/fdinfo/out.gguf",
        "out.gguf: cannot write in /proc/self/fdinfo",
        "name another",
    ),
    "a name of 300 letters": ("x" * 300, "File name too long", "x"),
}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", PLACES)
def test_places(refuses, dense, tmp_path, monkeypatch, name, force):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "old.gguf").write_bytes(b"old")
    (tmp_path / "soft").symlink_to(dense)
    (tmp_path / "hard").hardlink_to(dense)
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    place, field, step = PLACES[name]
    if force and name == "what exists":
        export(dense, tmp_path / place, force=True)
        return
    error = refuses(dense, "--spans", "6-9", "-o", place, *(["--force"] if force else []))
    assert field in error and step in error


def test_a_disk_that_is_too_small(refuses, dense, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    error = refuses(dense, "--spans", "6-9", "-o", tmp_path / "out.gguf")
    assert "out.gguf: needs 11" in error and "has 1000000; make room or name another folder" in error


def test_a_file_that_may_not_grow(dense, tmp_path):
    """RLIMIT_FSIZE limits the size; Python ignores the signal of it."""
    before = folder_state(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "shareatt_export", dense, "--spans", "6-9", "-o", tmp_path / "out.gguf"],
        capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500_000,) * 2),
    )  # fmt: skip
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    assert done.returncode == 1 and errors == [f"Error: {tmp_path / 'out.gguf'}: cannot be written: File too large"]
    assert folder_state(tmp_path) == before


# In its own mount namespace: a disk in memory with an old file on it; it prints the files after the command.
ON_A_SMALL_DISK = """
mount -t tmpfs -o size=1m none "$0" && printf old > "$0/old.gguf" || exit 99
"$@"; status=$?
ls -A "$0"; cat "$0/old.gguf"
exit $status
"""
UNSHARE = ["unshare", "--user", "--map-root-user", "--mount"]
# A quota, or another program that writes, may leave less space than the file system reports.
MORE_THAN_THERE_IS = """
import shutil
from shareatt_export.cli import main as cli
usage = shutil.disk_usage
shutil.disk_usage = lambda path: usage(path)._replace(free=1 << 40)
cli.main()
"""


def may_mount() -> bool:
    command = [*UNSHARE, "mount", "-t", "tmpfs", "none", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


@pytest.mark.skipif(not may_mount(), reason="this user may not mount")
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("program", "message"),
    [
        (["-m", "shareatt_export"], "needs 11"),
        (["-c", MORE_THAN_THERE_IS], "cannot be written: No space left on device"),
    ],
    ids=["seen before", "while writing"],
)
def test_a_small_disk_is_full(dense, tmp_path, program, message, force):
    disk = tmp_path / "disk"
    disk.mkdir()
    out = disk / ("old.gguf" if force else "new.gguf")
    command = [sys.executable, *program, dense, "--spans", "6-9", "-o", out, *(["--force"] if force else [])]
    done = subprocess.run([*UNSHARE, "sh", "-c", ON_A_SMALL_DISK, disk, *command], capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    assert done.returncode == 1 and len(errors) == 1 and f"{out}: {message}" in errors[0]
    assert "Traceback" not in done.stderr and done.stdout == "old.gguf\nold"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("where", ["write_at", "sync", "name"])
def test_the_disk_fails(refuses, dense, tmp_path, monkeypatch, code, where):
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(
        *{"write_at": (transfer, "write_at"), "sync": (staging, "sync_file"), "name": (Path, "hardlink_to")}[where],
        fail,
    )
    error = refuses(dense, "--spans", "6-9", "-o", tmp_path / "out.gguf")
    assert f"{tmp_path / 'out.gguf'}: cannot be written: {os.strerror(code)}" in error


def test_a_file_system_without_hard_links(run, dense, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(Path, "hardlink_to", fail)
    assert run(dense, "--spans", "6-9", "-o", tmp_path / "out.gguf").status == 0
    verify(tmp_path / "out.gguf", dense)


def test_another_file_system(run, dense, memory):
    assert dense.stat().st_dev != memory.stat().st_dev
    assert run(dense, "--spans", "6-9", "-o", memory / "out.gguf").status == 0
    verify(memory / "out.gguf", dense)


def test_an_input_that_becomes_shorter(refuses, dense, tmp_path, monkeypatch):
    copy = small_gguf.write_dense(tmp_path / "copy.gguf")
    write_at = transfer.write_at

    def cut(*arguments: object) -> None:
        os.truncate(copy, 100_000)
        write_at(*arguments)

    monkeypatch.setattr(transfer, "write_at", cut)
    with pytest.raises(VerifyFailed, match=r"became shorter while it was copied; nothing was written"):
        export(copy, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


# ---------------------------------------------------------------- programs at once, and stopped ones


def forked(*arguments: object) -> int:
    """Run a command line in a forked process, without the start-up time of Python; signals wait until main() runs."""
    signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        return child
    command = cli.cli

    def unblocked(**options: object) -> object:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        return command(**options)

    cli.cli = unblocked
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    sys.argv = ["shareatt-export", *map(str, arguments)]
    weakref.finalize._registry.clear()  # temporary folders of the parent
    code = 99
    try:
        cli.main()
    except SystemExit as exit:
        code = int(exit.code or 0)
    except KeyboardInterrupt:  # after the last line of main(), when a program ends
        code = 130
    finally:
        weakref.finalize._exitfunc()  # as a program does at its end
        os._exit(code)


def status(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory, which syncs at once even if the disk is busy, and is on another file system."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_two_writers_at_once(memory):
    """One of the two gets the name, and its file is complete."""
    dense = small_gguf.write_dense(memory / "dense.gguf")
    out = memory / "out.gguf"
    for _ in range(5):
        out.unlink(missing_ok=True)
        children = [forked(dense, "--spans", "6-9", "-q", "-o", out) for _ in range(2)]
        assert sorted(map(status, children)) == [0, 1]
        verify(out, dense)
    assert names(memory) == {"dense.gguf", "out.gguf"}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("number", "expected", "times"), [(signal.SIGKILL, -9, 50), (signal.SIGINT, 130, 20), (signal.SIGTERM, 143, 20)]
)
def test_stopped_at_any_time(request, memory, record_property, number, expected, times, force):
    """There is no output or a complete one; with --force, the old or the new one.

    Only SIGKILL leaves a temporary folder, which the next run removes.
    """
    dense = small_gguf.write_dense(memory / "dense.gguf")
    out, chance = memory / "out.gguf", random.Random(int(number))
    before = dense.read_bytes()
    start = time.monotonic()
    assert status(forked(dense, "--spans", "6-9", "-q", "-o", out)) == 0
    length, whole = time.monotonic() - start, out.read_bytes()
    seen, times = set(), times * request.config.getoption("kills")
    for i in range(times):
        out.unlink()
        if force:
            out.write_bytes(b"old")
        child = forked(dense, "--spans", "6-9", "-q", "-o", out, *(["--force"] if force else []))
        time.sleep(chance.uniform(0, 1.1) * length if i else 0)
        os.kill(child, number)
        seen.add(status(child))
        if not out.exists():
            out.write_bytes(b"")
        assert out.read_bytes() in ((b"old", whole) if force else (b"", whole))
        if number != signal.SIGKILL:
            assert names(memory) == {"dense.gguf", "out.gguf"}
    assert seen <= {0, expected} and expected in seen
    for left in memory.glob(".shareatt-*"):
        os.utime(left, (0, 0))
    export(dense, out, force=True)
    assert names(memory) == {"dense.gguf", "out.gguf"} and dense.read_bytes() == before
    record_property("cases", times)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_within_a_lock(memory, monkeypatch, number):
    """A signal may come while Python acquires one of its own locks.

    An exception there would leave the lock taken for ever.
    """
    dense, out, parent = small_gguf.write_dense(memory / "dense.gguf"), memory / "out.gguf", os.getpid()
    enter, taken, main = threading.Condition.__enter__, [], threading.get_ident()

    def interrupted(lock: threading.Condition) -> bool:
        entered = enter(lock)
        if os.getpid() != parent and threading.get_ident() == main:
            signal.alarm(60)
            taken.append(lock)
            if len(taken) == at:
                signal.raise_signal(number)
        return entered

    monkeypatch.setattr(threading.Condition, "__enter__", interrupted)
    expected = {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    for at in range(1, 40, 3):  # noqa: B007  (interrupted() looks at it)
        assert status(forked(dense, "--spans", "6-9", "-q", "-o", out)) == expected
        assert names(memory) == {"dense.gguf"}


def test_copying_stops_soon_after_a_signal(dense, tmp_path):
    """The export does not copy the rest of the tensors first, which can take minutes."""
    plan, told = plan_of(dense), []

    def advance(n_bytes: int) -> None:
        told.append(n_bytes)
        if len(told) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            write_plan(plan, [tmp_path / "out.gguf"], None, advance)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(told) < len(plan.dense.tensors) / 2


def test_folders_in_use_and_of_others_are_left_alone(dense, tmp_path):
    """Folders of running programs are locked, new folders may not be locked yet, and a link is not one of ours."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / ".shareatt-link").symlink_to("theirs")
    (tmp_path / ".shareatt-young").mkdir()
    (tmp_path / ".shareatt-file").write_bytes(b"")
    os.utime(tmp_path / ".shareatt-file", (0, 0))
    os.utime(tmp_path / "theirs", (0, 0))
    with staging.private_folder(tmp_path) as used:
        os.utime(used, (0, 0))
        export(dense, tmp_path / "out.gguf")
        assert used.is_dir()
    assert names(tmp_path) == {
        "dense.gguf",
        "out.gguf",
        "theirs",
        ".shareatt-link",
        ".shareatt-young",
        ".shareatt-file",
    }


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), SystemExit])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_failed_export_leaves_nothing_new(dense, tmp_path, monkeypatch, error, old):
    out = tmp_path / "out.gguf"
    if old:
        out.write_bytes(old)
    write_at, done = transfer.write_at, []

    def fail_half_way(*arguments: object) -> None:
        write_at(*arguments)
        done.append(1)
        if len(done) > 20:
            raise error

    monkeypatch.setattr(transfer, "write_at", fail_half_way)
    before = names(tmp_path)
    with pytest.raises((KeyboardInterrupt, SystemExit, OutputRefused)):
        export(dense, out, force=True)
    assert names(tmp_path) == before and (out.read_bytes() if old else None) == old


def test_a_file_that_fails_verification_gets_no_name(dense, tmp_path, monkeypatch):
    write_at, out = transfer.write_at, tmp_path / "out.gguf"
    monkeypatch.setattr(
        transfer, "write_at", lambda file, at, data: write_at(file, at, data[:-1] + bytes([data[-1] ^ 1]))
    )
    with pytest.raises(VerifyFailed, match=f"{out}: tensor '.*': its bytes differ .*; nothing was written"):
        export(dense, out)
    assert names(tmp_path) == {"dense.gguf"}


def test_output_is_the_input(dense, tmp_path):
    hard, soft = tmp_path / "hard.gguf", tmp_path / "soft.gguf"
    hard.hardlink_to(dense)
    soft.symlink_to(dense)
    before = dense.read_bytes()
    for out in (dense, hard, soft, tmp_path / "." / "dense.gguf"):
        with pytest.raises(OutputRefused, match="is the input itself"):
            export(dense, out, force=True)
    assert dense.read_bytes() == before


def test_overwriting_needs_force(dense, tmp_path):
    out = tmp_path / "out.gguf"
    out.write_bytes(b"old")
    out.chmod(0o640)
    with pytest.raises(OutputRefused, match="exists already; use --force"):
        export(dense, out)
    assert out.read_bytes() == b"old"
    export(dense, out, force=True)
    assert out.stat().st_mode & 0o777 == 0o640


def test_a_name_taken_meanwhile_is_left_alone(tmp_path, monkeypatch):
    first, second = tmp_path / "1.gguf", tmp_path / "2.gguf"
    monkeypatch.setattr(staging, "check_output", lambda *_: first.write_bytes(b"theirs"))
    with pytest.raises(OutputRefused, match="was created by another program meanwhile"), staged(first) as folder:
        (folder / "a").write_bytes(b"ours")
        (folder / "b").write_bytes(b"ours")
        publish({folder / "a": first, folder / "b": second}, [], False)  # takes the second name first
    assert first.read_bytes() == b"theirs" and names(tmp_path) == {"1.gguf"}


def test_a_model_is_there_when_its_first_shard_is(tmp_path, monkeypatch):
    take_name, seen = staging._take_name, []
    monkeypatch.setattr(staging, "_take_name", lambda *arguments: seen.append(arguments[1]) or take_name(*arguments))
    shards = [tmp_path / f"{i}.gguf" for i in range(3)]
    with staged(shards[0]) as folder:
        for i in range(3):
            (folder / str(i)).write_bytes(b"")
        publish({folder / str(i): path for i, path in enumerate(shards)}, [], False)
    assert seen == shards[::-1]


def test_a_dense_file_that_changes_meanwhile(dense, tmp_path, monkeypatch):
    write_at = transfer.write_at

    def write_and_touch(*arguments: object) -> None:
        write_at(*arguments)
        os.utime(dense, ns=(1, 1))

    monkeypatch.setattr(transfer, "write_at", write_and_touch)
    with pytest.raises(VerifyFailed, match="was changed by another program"):
        export(dense, tmp_path / "out.gguf")
    assert names(tmp_path) == {"dense.gguf"}


def test_new_files_follow_the_umask(dense, tmp_path):
    old = os.umask(0o027)
    try:
        assert export(dense, tmp_path / "out.gguf").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(old)


ALIGN = ("--align", "--text", tiny_models.DEMO / "heldout.txt")
STAGES = {  # and the options, beside --spans, of an export with this stage
    "converting": (),
    "fitting": ALIGN,
    "writing": (),
    "quantising": ("--outtype", "Q4_0"),
    "splitting": ("--outtype", "Q4_0", "--split-max-size", "2M"),
}


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
@pytest.mark.parametrize("stage", STAGES)
def test_stopped_in_each_stage(built, demo_dense, memory, monkeypatch, stage, number, expected):
    """The signal comes when the stage first reports progress; a child process of the stage is stopped too."""
    told = []

    @contextmanager
    def stopping(*_: object) -> Iterator[Step]:
        def step(what: str, fraction: float | None) -> None:
            told.append(what)
            if told.count(stage) == 2:  # the first report is the beginning of the stage
                os.kill(os.getpid(), number)

        yield step

    monkeypatch.setattr(progress_bar, "steps", stopping)
    model = tiny_models.DEMO if stage == "converting" else demo_dense
    before = folder_state(model) if model.is_dir() else model.read_bytes()
    assert status(forked(model, "--spans", "6-9", "-o", memory / "out.gguf", *STAGES[stage])) == expected
    left = names(memory)
    assert all(name.startswith(".shareatt-") for name in left) if number == signal.SIGKILL else not left
    assert (folder_state(model) if model.is_dir() else model.read_bytes()) == before
