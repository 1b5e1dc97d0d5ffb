"""The pinned llama.cpp and the patch that teaches it Shared Attention, as cpp_patch/PIN.toml records them."""

import hashlib
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import RuntimeProblem


@dataclass(frozen=True)
class Pin:
    """The tables of cpp_patch/PIN.toml.

    `package`, `version` and `sdist_sha256` name the source archive on PyPI that llama.cpp comes in. `abi` is the
    version of the patch's C interface. `touched` maps each file that hooks.patch changes to its SHA-256 before and
    after.
    """

    package: str
    version: str
    sdist_sha256: str
    llama_cpp_commit: str
    abi: int
    touched: dict[str, tuple[str, str]]


def patch_dir() -> Path:
    """Return the folder cpp_patch, which is inside the installed package, or beside it in a checkout.

    Raises RuntimeProblem if it is missing.
    """
    here = Path(__file__).parent.parent
    for candidate in (here / "cpp_patch", here.parent / "cpp_patch"):
        if (candidate / "PIN.toml").is_file():
            return candidate
    raise RuntimeProblem("cpp_patch is missing", path=here, next_step="install shareatt-export again")


@cache
def pin() -> Pin:
    """Return the pin. Raises RuntimeProblem as patch_dir() does."""
    data = tomllib.loads((patch_dir() / "PIN.toml").read_text(encoding="utf-8"))
    touched = {path: (hashes["before"], hashes["after"]) for path, hashes in data["touched"].items()}
    return Pin(**data["pin"], touched=touched)


@cache
def patch_id() -> str:
    """Return 12 hexadecimal digits that change whenever the pin, the hooks or our sources change.

    The folder of the runtime has them in its name, so that a new patch gets a new runtime.
    """
    folder = patch_dir()
    digest = hashlib.sha256()
    for path in [folder / "PIN.toml", folder / "hooks.patch", *sorted((folder / "src").iterdir())]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
