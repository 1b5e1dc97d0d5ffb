"""Build kernel.cpp on the runtime's ggml; `python -m tests.support.kernel` prints the times of cpp_patch/README.md."""

import os
import subprocess
import tempfile
from pathlib import Path

from shareatt_export.llamacpp import runtime
from shareatt_export.llamacpp.pin import patch_dir

HERE = Path(__file__).parent


def build(folder: Path) -> Path:
    built, program = runtime.require(), folder / "kernel"
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
    return subprocess.run([program, what], check=True, capture_output=True, text=True).stdout.splitlines()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        print(
            "| heads, tokens, positions | weights: operators | kernel | product: operator | kernel | flash attention |"
        )
        print("| --- | --- | --- | --- | --- | --- |")
        print("\n".join(output(build(Path(work)), "time")))
