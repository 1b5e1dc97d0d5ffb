"""Build and run kernel.cpp, which checks and times the kernels of the patch against the operators of ggml.

`python -m tests.support.kernel` prints the table of times in cpp_patch/README.md.
"""

import os
import subprocess
import tempfile
from pathlib import Path

from shareatt_export.llamacpp import runtime
from shareatt_export.llamacpp.pin import patch_dir

HERE = Path(__file__).parent


def build(folder: Path) -> Path:
    """Build kernel.cpp with the libraries of the runtime, and return the program."""
    built, program = runtime.require_built(), folder / "kernel"  # an installed runtime has no headers
    includes = [patch_dir() / "src", built.source / "ggml" / "include"]
    command = [
        os.environ.get("CXX", "g++"),
        "-O3",
        "-std=c++17",
        "-Wall",
        "-Wextra",
        HERE / "kernel.cpp",
        "-o",
        program,
    ]
    command += [f"-I{path}" for path in includes]
    command += [f"-L{built.bin}", "-lggml", "-lggml-cpu", "-lggml-base", f"-Wl,-rpath,{built.bin}"]
    subprocess.run(list(map(str, command)), check=True)
    return program


def output(program: Path, what: str) -> list[str]:
    """Return the lines that the program prints for `what`, a mode of kernel.cpp's main()."""
    return subprocess.run([program, what], check=True, capture_output=True, text=True).stdout.splitlines()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        print(
            "| heads, tokens, positions | weights: operators | kernel | product: operator | kernel | both fused "
            "| flash attention |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- |")
        print("\n".join(output(build(Path(work)), "time")))
