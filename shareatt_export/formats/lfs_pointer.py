"""Recognise what a clone without Git LFS leaves in the place of a large file."""

from pathlib import Path

from ..errors import BadInput


def refuse_lfs_pointer(path: Path) -> None:
    """Raises BadInput for what a clone without Git LFS has in the place of a large file."""
    pointer = b"version https://git-lfs"
    with path.open("rb") as file:
        if file.read(len(pointer)) == pointer:
            raise BadInput(f"{path}: a Git LFS pointer, not the file itself; run 'git lfs pull' in its folder")
