"""What the package must do with a mutant: refuse it with the name of the file, or accept it and be right."""

from pathlib import Path

import gguf
from safetensors import safe_open

import shareatt_export
from shareatt_export.checkpoint.checks import check_files, check_no_code
from shareatt_export.errors import BadSpans, ShareattError
from shareatt_export.exporting.verify import verify
from shareatt_export.formats.gguf_reader import read_header


def gguf_outcome(path: Path, out: Path) -> str:
    """Export the GGUF `path` to `out`; return "refused" or "exported".

    Raises AssertionError or another error if the refusal does not name the file, leaves a file at `out`, or if the
    exported file is wrong.
    """
    out.unlink(missing_ok=True)
    try:
        shareatt_export.export(path, "0-1", out)
    except ShareattError as error:
        assert str(path) in str(error) or isinstance(error, BadSpans), error
        assert not out.exists()
        return "refused"
    verify(out, path)
    assert len(gguf.GGUFReader(out).tensors) == len(read_header(out).tensors)
    return "exported"


def checkpoint_outcome(broken: Path) -> str:
    """Check the folder of the file `broken`; return "refused" or "taken".

    Raises AssertionError if the refusal does not name the folder, and an error of safetensors if it cannot read a shard
    that the check accepts.
    """
    try:
        check_files(broken.parent)
        check_no_code(broken.parent)
    except ShareattError as error:
        assert str(broken.parent) in str(error), error
        return "refused"
    if broken.suffix == ".safetensors":
        with safe_open(broken, "np") as shard:
            assert all(shard.get_slice(name).get_shape() is not None for name in shard.keys())  # noqa: SIM118
    return "taken"
