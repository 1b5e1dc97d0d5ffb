"""A group of processes that the system ends when this process ends, however it ends.

Linux and macOS: a shell, the watcher, reads from a pipe whose other end only this process holds. The system closes that
end with this process; then the watcher kills its own process group. PR_SET_PDEATHSIG of Linux would reach only the
child, not what the child starts (of a build: ninja and the compilers), it acts when the thread ends that started the
child, and a child cannot set it without code between fork and exec, which is not safe beside threads.

Windows: a job object whose only handle this process holds.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Protocol


class ProcessGroup(Protocol):
    """`options`: arguments of Popen for a process that is to be in the group; add() it as soon as it is started."""

    options: Mapping[str, Any]

    def add(self, process: "subprocess.Popen[Any]") -> None:
        """Make the process a member, if `options` did not do so."""

    def stop(self) -> None:
        """Ask all members to end."""

    def close(self) -> None:
        """End the group, once its members have ended."""


if sys.platform != "win32":

    class WatchedGroup:
        """The group of the watcher, which stays in it, so that the system gives its number to no other group."""

        WATCHER = ("/bin/sh", "-c", "read -r line || kill -KILL 0")

        def __init__(self) -> None:
            reading, self._writing = os.pipe()
            try:
                self._watcher = subprocess.Popen(self.WATCHER, stdin=reading, process_group=0)
            except BaseException:
                os.close(self._writing)
                raise
            finally:
                os.close(reading)
            self.options: Mapping[str, Any] = {"process_group": self._watcher.pid}

        def add(self, process: "subprocess.Popen[Any]") -> None:
            """Do nothing: the process joined the group before its program began."""

        def stop(self) -> None:
            """Send SIGTERM to all members."""
            os.killpg(self._watcher.pid, signal.SIGTERM)

        def close(self) -> None:
            """End the watcher."""
            with suppress(BrokenPipeError):  # it was stopped with the others
                os.write(self._writing, b"\n")
            os.close(self._writing)
            self._watcher.wait()

    SystemGroup = WatchedGroup

else:

    class Job:
        """A job object of Windows. What the members start are members, too."""

        EXTENDED_LIMITS, KILL_ON_JOB_CLOSE = 9, 0x2000

        class Limits(ctypes.Structure):
            """JOBOBJECT_EXTENDED_LIMIT_INFORMATION; a machine word stands for each SIZE_T and pointer."""

            _fields_ = (
                ("times", ctypes.c_int64 * 2),
                ("flags", ctypes.c_uint32),
                ("working_set", ctypes.c_size_t * 2),
                ("active_processes", ctypes.c_uint32),
                ("affinity", ctypes.c_size_t),
                ("classes", ctypes.c_uint32 * 2),
                ("io_counters", ctypes.c_uint64 * 6),
                ("memory", ctypes.c_size_t * 4),
            )

        def __init__(self) -> None:
            self._kernel = ctypes.WinDLL("kernel32", use_last_error=True)
            self._kernel.CreateJobObjectW.restype = ctypes.c_void_p
            self._job = ctypes.c_void_p(self._kernel.CreateJobObjectW(None, None))
            limits = self.Limits(flags=self.KILL_ON_JOB_CLOSE)
            self._kernel.SetInformationJobObject(
                self._job, self.EXTENDED_LIMITS, ctypes.byref(limits), ctypes.sizeof(limits)
            )
            self.options: Mapping[str, Any] = {}

        def add(self, process: "subprocess.Popen[Any]") -> None:
            """Put the process into the job; what it started before that is not in it."""
            handle = ctypes.c_void_p(int(process._handle))  # type: ignore[attr-defined]
            self._kernel.AssignProcessToJobObject(self._job, handle)

        def stop(self) -> None:
            """Terminate all members."""
            self._kernel.TerminateJobObject(self._job, 1)

        def close(self) -> None:
            """Close the handle, which also terminates members that still run."""
            self._kernel.CloseHandle(self._job)

    SystemGroup = Job


def process_group() -> ProcessGroup:
    """Make a group without members. Raises OSError if the watcher cannot be started."""
    return SystemGroup()
