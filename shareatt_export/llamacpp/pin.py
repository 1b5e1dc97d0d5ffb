"""The pinned llama.cpp and the patch that teaches it Shared Attention, as cpp_patch/PIN.toml records them."""

import hashlib
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import RuntimeProblem


@dataclass(frozen=True)
class Pin:
    """`touched` maps each file that hooks.patch changes to its SHA-256 before and after."""

    package: str
    version: str
    sdist_sha256: str
    llama_cpp_commit: str
    abi: int
    touched: dict[str, tuple[str, str]]


def patch_dir() -> Path:
    """cpp_patch: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).parent.parent
    for candidate in (here / "cpp_patch", here.parent / "cpp_patch"):
        if (candidate / "PIN.toml").is_file():
            return candidate
    raise RuntimeProblem(f"{here}: cpp_patch is missing; install shareatt-export again")


@cache
def pin() -> Pin:
    data = tomllib.loads((patch_dir() / "PIN.toml").read_text())
    touched = {path: (hashes["before"], hashes["after"]) for path, hashes in data["touched"].items()}
    return Pin(**data["pin"], touched=touched)


@cache
def patch_id() -> str:
    """Changes whenever the pin, the hooks or our sources change; names the runtime's folder."""
    folder = patch_dir()
    digest = hashlib.sha256()
    for path in [folder / "PIN.toml", folder / "hooks.patch", *sorted((folder / "src").iterdir())]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
