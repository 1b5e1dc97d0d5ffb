"""Recognise the pointer file that a Git clone without Git LFS has instead of a large file."""

from pathlib import Path

from ..errors import BadInput


def refuse_lfs_pointer(path: Path) -> None:
    """Raise BadInput if the file is a Git LFS pointer."""
    pointer = b"version https://git-lfs"
    with path.open("rb") as file:
        if file.read(len(pointer)) == pointer:
            reason, next_step = "a Git LFS pointer, not the file itself", "run 'git lfs pull' in its folder"
            raise BadInput(reason, path=path, next_step=next_step)
