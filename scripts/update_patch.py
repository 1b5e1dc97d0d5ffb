#!/usr/bin/env python3
"""Write cpp_patch/hooks.patch and the [touched] hashes of PIN.toml from a git tree of the pinned llama.cpp.

    python scripts/update_patch.py TREE

In TREE, the stock source is committed, and the hooks are uncommitted changes. See 'Moving the pin' in
cpp_patch/README.md.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

PATCH_DIR = Path(__file__).parent.parent / "cpp_patch"


def main(tree: str) -> None:
    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", "-C", tree, *arguments], check=True, capture_output=True).stdout

    own = {path.name for path in (PATCH_DIR / "src").iterdir()}
    changed = [name for name in git("diff", "--name-only").decode().split() if Path(name).name not in own]
    (PATCH_DIR / "hooks.patch").write_bytes(git("diff", "--unified=1", "--no-color", "--", *changed))
    lines = []
    for name in changed:
        before = hashlib.sha256(git("show", f"HEAD:{name}")).hexdigest()
        after = hashlib.sha256((Path(tree) / name).read_bytes()).hexdigest()
        lines += [f'[touched."{name}"]', f'before = "{before}"', f'after = "{after}"', ""]
    pin = PATCH_DIR / "PIN.toml"
    head = pin.read_text().split("[touched.")[0]
    pin.write_text(head + "\n".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
