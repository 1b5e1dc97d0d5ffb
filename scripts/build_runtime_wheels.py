"""Build wheels of the runtime, for machines without a compiler: python scripts/build_runtime_wheels.py -o dist

One Linux machine builds for every platform of PLATFORMS with the cross compiler of the package ziglang
(pip install 'shareatt-export[build]' ziglang). The wheels are for any processor of their platform: ggml chooses among
variants of its CPU backend when a program starts.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import ziglang

from shareatt_export._version import __version__
from shareatt_export.errors import ShareattError
from shareatt_export.llamacpp.build import BINDINGS_NEED, compile_source, locked
from shareatt_export.llamacpp.pin import patch_id, pin
from shareatt_export.llamacpp.runtime import INSTALLED_PACKAGE, cmake_targets
from shareatt_export.llamacpp.source import cache_dir, copy_source, pip, sdist_dir

PROJECT = Path(__file__).resolve().parent / "runtime_wheel"
ZIG = Path(ziglang.__file__).parent
CONVERTER = ("convert_hf_to_gguf.py", "conversion", "gguf-py")
# This variant of the CPU backend is zen4 with AMX, which kills programs on virtual machines that only claim to have it.
# zig leaves .lib files beside the DLLs of Windows.
LEFT_OUT = ("*ggml-cpu-sapphirerapids.*", "*.lib")
OPTIONS = (
    "-DGGML_BACKEND_DL=ON",
    "-DGGML_CPU_ALL_VARIANTS=ON",
    "-DGGML_NATIVE=OFF",
    "-DGGML_OPENMP=OFF",  # zig has no OpenMP; ggml has threads of its own
    # A wheel holds no symbolic links, so a library has one name: libllama.so, not libllama.so.0.5.0.
    "-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON",
    f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={PROJECT / 'static_tools.cmake'}",
    # No library may use libc++ of another one: it would free what it has not allocated. -s leaves the symbols out.
    "-DCMAKE_SHARED_LINKER_FLAGS=-Wl,-Bsymbolic -s",
    "-DCMAKE_MODULE_LINKER_FLAGS=-Wl,-Bsymbolic -s",
    "-DCMAKE_EXE_LINKER_FLAGS=-s",
)


@dataclass(frozen=True)
class Platform:
    """A platform to build for: zig's name of it, CMake's names, and the platform tag of the wheel."""

    zig: str
    system: str
    processor: str
    tag: str


PLATFORMS = {
    "linux-x86_64": Platform("x86_64-linux-gnu.2.28", "Linux", "x86_64", "manylinux_2_28_x86_64"),
    "linux-aarch64": Platform("aarch64-linux-gnu.2.28", "Linux", "aarch64", "manylinux_2_28_aarch64"),
    "windows-x86_64": Platform("x86_64-windows-gnu", "Windows", "x86_64", "win_amd64"),
}


def say(what: str, fraction: float | None) -> None:
    print(what if fraction is None else f"{what} {fraction:.0%}", file=sys.stderr)


def build_wheel(name: str, out: Path) -> Path:
    """Build the wheel for a platform into the folder `out` and return its path. Raises RuntimeProblem."""
    platform, root = PLATFORMS[name], cache_dir() / f"wheel-{patch_id()}-{name}"
    with locked(root):
        say("fetching the source", None)
        copy_source(root / "llama.cpp", None, patched=True)
        shutil.rmtree(root / "build", ignore_errors=True)  # a wheel holds nothing of an earlier build
        options = (*OPTIONS, *compilers(root, platform))
        # By default ccache asks when the compiler was changed, and these scripts are always new.
        os.environ["CCACHE_COMPILERCHECK"] = f"string:{compiler_name(platform)}"
        compile_source(root, cmake_targets(patched=True), no_amx=False, progress=say, options=options)
        with staged_project(root, platform) as project:
            pip(["wheel", "--no-deps", "-w", str(out), str(project)])
    (wheel,) = out.glob(f"{INSTALLED_PACKAGE}-*{patch_id()}-*{platform.tag}.whl")
    return wheel


def compiler_name(platform: Platform) -> str:
    return f"ziglang {version('ziglang')}, {platform.zig}"


# zig does not read the -march of ARM that ggml's CMake gives. -march=armv8.2-a+dotprod+fp16+nosve becomes
# -mcpu=generic+v8_2a+dotprod+fullfp16-sve.
TRANSLATE_MARCH = r"""
for argument do
    shift
    case $argument in
        -march=armv*) argument=$(echo "$argument" | sed \
            -e 's/^-march=armv\([0-9]\)\.\([0-9]\)-a/-mcpu=generic+v\1_\2a/' \
            -e 's/^-march=armv\([0-9]\)-a/-mcpu=generic+v\1a/' -e 's/+fp16/+fullfp16/' -e 's/+no/-/') ;;
    esac
    set -- "$@" "$argument"
done
"""

# A DLL of llama.cpp exports every symbol, those of zig's start code too, which every other DLL and program has for
# itself. This object, linked into all of them, keeps these from being exported.
OWN_START = r"""
__asm__(".section .drectve,\"yni\"\n"
        ".ascii \" -exclude-symbols:atexit,_CRT_INIT,__mingw_module_is_dll\"\n");
"""


def compilers(root: Path, platform: Platform) -> list[str]:
    """Write a script for each program of zig, because CMake takes the path of a program; return CMake's options."""
    options = [f"-DCMAKE_SYSTEM_NAME={platform.system}", f"-DCMAKE_SYSTEM_PROCESSOR={platform.processor}"]
    for variable, program in {"C_COMPILER": "cc", "CXX_COMPILER": "c++", "AR": "ar", "RANLIB": "ranlib"}.items():
        compiles = program in ("cc", "c++")
        target, translate = (f" -target {platform.zig}", TRANSLATE_MARCH) if compiles else ("", "\n")
        script = root / f"zig-{program}"
        script.write_text(f'#!/bin/sh{translate}exec "{ZIG / "zig"}" {program}{target} "$@"\n')
        script.chmod(0o755)
        options.append(f"-DCMAKE_{variable}={script}")
    if platform.system == "Windows":
        source, compiled = root / "own_start.c", root / "own_start.obj"
        source.write_text(OWN_START)
        subprocess.run([root / "zig-cc", "-c", source, "-o", compiled], check=True)
        options += [f"-DCMAKE_{language}_STANDARD_LIBRARIES={compiled}" for language in ("C", "CXX")]
    return options


@contextmanager
def staged_project(root: Path, platform: Platform) -> Iterator[Path]:
    """Yield a copy of PROJECT with the built runtime in it."""
    project = root / "project"
    shutil.rmtree(project, ignore_errors=True)
    shutil.copytree(PROJECT, project)
    package, source = project / INSTALLED_PACKAGE, root / "llama.cpp"
    shutil.copytree(root / "build" / "bin", package / "bin", ignore=shutil.ignore_patterns(*LEFT_OUT))
    shutil.copytree(sdist_dir() / "llama_cpp", package / "python" / "llama_cpp")
    (package / "llama.cpp").mkdir()
    for name in CONVERTER:
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy
        copy(source / name, package / "llama.cpp" / name)
    licenses = project / "licenses"
    shutil.copytree(source / "licenses", licenses)
    shutil.copy(source / "LICENSE", licenses / "LICENSE-llama.cpp")
    shutil.copy(sdist_dir() / "LICENSE.md", licenses / "LICENSE-llama-cpp-python")
    shutil.copy(ZIG / "lib" / "libcxx" / "LICENSE.TXT", licenses / "LICENSE-libcxx")
    record = {
        "version": f"{__version__}+patch.{patch_id()}",
        "llama_cpp": pin().llama_cpp_commit,
        "source": f"{pin().package}=={pin().version}",
        "patch": patch_id(),
        "abi": pin().abi,
        "amx_disabled": True,
        "platform": platform.tag,
        "compiler": compiler_name(platform),
        "requires": ["numpy", *BINDINGS_NEED],
    }
    (package / "runtime.json").write_text(json.dumps(record, indent=2) + "\n")
    yield project
    shutil.rmtree(project)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", choices=PLATFORMS, action="append", help="platform to build for; default: all")
    parser.add_argument("-o", "--output", type=Path, default=Path("dist"), help="folder for the wheels")
    arguments = parser.parse_args()
    for name in arguments.platform or PLATFORMS:
        try:
            print(build_wheel(name, arguments.output))
        except ShareattError as error:
            sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
