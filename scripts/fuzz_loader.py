"""Load bad and mutated SA files in llama.cpp with AddressSanitizer and UndefinedBehaviorSanitizer.

    python -m scripts.fuzz_loader --seed 1 --count 1000 --keep build/findings

A child process loads each file, and runs it if it loads. A finding is a crash or a sanitizer report that the unpatched
library has on none of these files (it can load half of the mutants, which are dense models), or a bad file that is not
refused with its reason. The file is kept. The script first builds both libraries in the cache.
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

from scripts.upstream.build import build
from scripts.upstream.cases import ADDRESS
from scripts.upstream.outcome import findings
from shareatt_export.llamacpp import runtime
from tests.support import small_gguf
from tests.support.exports import export
from tests.support.faults.bad_shared_files import BAD_FILES, shared_mutants
from tests.support.faults.load_child import OUTCOMES, LoadChild, LoadResult

OPTIONS = {
    # children end without freeing memory; a model may be refused because it needs more memory than there is
    "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=4096:exitcode=99",
    "UBSAN_OPTIONS": "print_stacktrace=0",
}
ASSERT = re.compile(r"([\w.+-]+\.(?:c|cpp|h|hpp)):\d+: (.*)")


def library(patched: bool) -> Path:
    name = "patched" if patched else "unpatched"
    return build(patched, ADDRESS, ("llama",), lambda what, fraction: print(f"{name}: {what}", file=sys.stderr))


def of_gcc(name: str) -> str:
    return subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()


def faults(of: LoadResult) -> set[str]:
    """Return the problems of a load in words that are the same without the patch."""
    found = findings(of.said)
    if of.outcome not in OUTCOMES.values() and not found:
        found = {f"{of.outcome}: {file}: {text}" for file, text in ASSERT.findall(of.said)}
        found = found or {f"{of.outcome}: {of.said.splitlines()[-1:]}"}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--keep", type=Path, default=Path("build/findings"))
    args = parser.parse_args()
    # Python is not built with sanitizers, so they are preloaded; libasan needs libstdc++ to be loaded first
    env = OPTIONS | {"LD_PRELOAD": f"{of_gcc('libasan.so')} {of_gcc('libstdc++.so')}"}
    python, start = runtime.require().python, time.monotonic()
    seen, known = collections.Counter[str](), collections.Counter[str]()
    found: dict[Path, set[str]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        patched, unpatched = (stack.enter_context(LoadChild(python, library(which), **env)) for which in (True, False))
        path = folder / "bad.gguf"

        def look(name: str, message: str = "") -> None:
            of = patched.try_load(path)
            seen[of.outcome] += 1
            wrong = faults(of)
            if wrong:
                known.update(wrong & faults(unpatched.try_load(path)))
            if message and not (of.outcome == "refused" and message in of.said):
                wrong.add(f"{of.outcome}, not refused with '{message}'")
            if wrong:
                args.keep.mkdir(parents=True, exist_ok=True)
                found[Path(shutil.copy(path, args.keep / f"loader-{name.replace(' ', '-')}.gguf"))] = wrong

        sound = export(small_gguf.write_dense(folder / "dense.gguf"), folder / "shared.gguf")
        for name, (make, message) in BAD_FILES.items():
            make(sound, path)
            look(name, message)
        for number, data in enumerate(shared_mutants(folder, args.seed, args.count)):
            path.write_bytes(data)
            look(f"{args.seed}-{number}")
    for kept, wrong in found.items():
        if new := wrong - known.keys():
            print(f"{kept}: {'; '.join(sorted(new))}")
            seen["findings"] += 1
        else:
            kept.unlink()
    minutes = (time.monotonic() - start) / 60
    print(f"{len(BAD_FILES)} bad files, {args.count} mutants of seed {args.seed}, {minutes:.0f} minutes: {dict(seen)}")
    for what, times in known.most_common():
        print(f"without the patch too, {times} times: {what}")
    sys.exit(bool(seen["findings"]))


if __name__ == "__main__":
    main()
