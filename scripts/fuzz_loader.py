"""Bad and mutated SA files in llama.cpp with AddressSanitizer and UndefinedBehaviorSanitizer.

    python -m scripts.fuzz_loader --seed 1 --count 1000 --keep build/findings

Each file is loaded, and run if it loads, in a process of its own. A finding is a crash or a sanitizer's report that the
library without the patch does not have on the same file, or a bad file that is not refused with its reason; the file is
kept. Builds both libraries in the cache first, in about half an hour on two cores.
"""

import argparse
import collections
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from shareatt_export import runtime
from tests import small
from tests.faults.loader import BAD_FILES, OUTCOMES, Other, Tried, shared_mutants
from tests.test_export import export

from .upstream.build import build
from .upstream.cases import ADDRESS
from .upstream.outcome import ABORT, findings

OPTIONS = {
    # no leaks of children that end without cleaning up; a model may ask for more memory than there is and be refused
    "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=4096:exitcode=99",
    "UBSAN_OPTIONS": "print_stacktrace=0",
}


def library(patched: bool) -> Path:
    name = "patched" if patched else "unpatched"
    return build(patched, ADDRESS, ("llama",), lambda what, fraction: print(f"{name}: {what}", file=sys.stderr))


def of_gcc(name: str) -> str:
    return subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()


def faults(of: Tried) -> set[str]:
    """What is wrong with a load, in words that are the same without the patch."""
    found = findings(of.said)
    if of.outcome not in OUTCOMES.values() and not found:
        reasons = ABORT.findall(of.said) or re.findall("AddressSanitizer: .*", of.said)[:1] or [of.said]
        found = {f"{of.outcome}: {reason}" for reason in reasons}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--keep", type=Path, default=Path("build/findings"))
    args = parser.parse_args()
    # Python itself is not built with them; libasan wraps the throw of a libstdc++ that is there before it
    env = OPTIONS | {"LD_PRELOAD": f"{of_gcc('libasan.so')} {of_gcc('libstdc++.so')}"}
    python, start = runtime.require().python, time.monotonic()
    seen, known = collections.Counter[str](), collections.Counter[str]()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        patched, unpatched = (stack.enter_context(Other(python, library(which), **env)) for which in (True, False))
        path = folder / "bad.gguf"

        def look(name: str, message: str = "") -> None:
            of = patched.tried(path)
            seen[of.outcome] += 1
            found = faults(of)
            if found:
                before = faults(unpatched.tried(path))
                known.update(found & before)
                found -= before
            if message and not (of.outcome == "refused" and message in of.said):
                found.add(f"{of.outcome}, not refused with '{message}'")
            if found:
                args.keep.mkdir(parents=True, exist_ok=True)
                kept = shutil.copy(path, args.keep / f"loader-{name.replace(' ', '-')}.gguf")
                print(f"{kept}: {'; '.join(sorted(found))}\n{of.said}", flush=True)
                seen["findings"] += 1

        sound = export(small.write_dense(folder / "dense.gguf"), folder / "shared.gguf")
        for name, (make, message) in BAD_FILES.items():
            make(sound, path)
            look(name, message)
        for number, data in enumerate(shared_mutants(folder, args.seed, args.count)):
            path.write_bytes(data)
            look(f"{args.seed}-{number}")
    minutes = (time.monotonic() - start) / 60
    print(f"{len(BAD_FILES)} bad files, {args.count} mutants of seed {args.seed}, {minutes:.0f} minutes: {dict(seen)}")
    for what, times in known.most_common():
        print(f"without the patch too, {times} times: {what}")
    sys.exit(bool(seen["findings"]))


if __name__ == "__main__":
    main()
