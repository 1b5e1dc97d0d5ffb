"""Child processes whose output is watched."""

import os
import sys
from contextlib import suppress

import pytest

from shareatt_export.system import child_process

SLOW = "import os, pathlib, sys, time; print(os.getpid(), flush=True); time.sleep(5); pathlib.Path(sys.argv[1]).touch()"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_child_is_stopped_with_what_watches_it(tmp_path, error):
    lines = []

    def stop(line: str) -> None:
        lines.append(line)
        raise error

    with pytest.raises(error):
        child_process.run([sys.executable, "-c", SLOW, str(tmp_path / "ended")], stop)
    with suppress(ChildProcessError):  # Popen does not wait after an interrupt
        os.waitpid(int(lines[0]), 0)
    assert not (tmp_path / "ended").exists()
