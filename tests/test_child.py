"""Child processes that are watched."""

import sys

import pytest

from shareatt_export import child

SLOW = "import pathlib, sys, time; print('begun', flush=True); time.sleep(5); pathlib.Path(sys.argv[1]).touch()"


def test_a_child_is_stopped_with_what_watches_it(tmp_path):
    def stop(line: str) -> None:
        raise KeyboardInterrupt(line)

    with pytest.raises(KeyboardInterrupt, match="begun"):
        child.run([sys.executable, "-c", SLOW, str(tmp_path / "ended")], stop)
    assert not (tmp_path / "ended").exists()
