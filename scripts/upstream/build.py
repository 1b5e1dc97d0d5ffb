"""Build llama.cpp's own tests from the unpatched and from the patched source, in folders of the cache.

There is one source tree for each, and one build folder for each sanitizer:
<cache>/upstream-tests/{unpatched,patched}-*/build*.
"""

from pathlib import Path

from scripts.upstream.cases import ADDRESS, PLAIN, THREAD
from shareatt_export.llamacpp import build as builder
from shareatt_export.llamacpp import runtime
from shareatt_export.llamacpp.pin import patch_id, pin
from shareatt_export.llamacpp.source import cache_dir, copy_source
from shareatt_export.system.progress import Step

TESTS = (
    "test-gguf",
    "test-alloc",
    "test-batch-alloc",
    "test-llama-archs",
    "test-save-load-state",
    "test-state-restore-fragmented",
    "test-thread-safety",
    "test-model-load-cancel",
    "test-autorelease",
    "test-backend-sampler",
    "test-recurrent-state-rollback",
)
# -O1 -g1: file and line in what a sanitizer says, at half the time to compile; and no NDEBUG, so that asserts count
SANITIZED = (
    "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
    "-DCMAKE_C_FLAGS_RELWITHDEBINFO=-O1 -g1",
    "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1 -D_GLIBCXX_ASSERTIONS",
)
# Half of the time would go to llama-common (arguments, chat templates, downloads), which the patch does not touch.
PLAIN_COMMON = """cmake_language(DEFER CALL set_property TARGET llama-common llama-common-base cpp-httplib
    APPEND PROPERTY COMPILE_OPTIONS -fno-sanitize=all -O0)
"""
OPTIONS = {
    PLAIN: (),
    ADDRESS: (
        *SANITIZED,
        "-DLLAMA_SANITIZE_ADDRESS=ON",
        "-DGGML_SANITIZE_ADDRESS=ON",
        "-DLLAMA_SANITIZE_UNDEFINED=ON",
        "-DGGML_SANITIZE_UNDEFINED=ON",
    ),
    # as upstream's own CI: a thread sanitizer does not understand the barriers of libgomp
    THREAD: (*SANITIZED, "-DLLAMA_SANITIZE_THREAD=ON", "-DGGML_SANITIZE_THREAD=ON", "-DGGML_OPENMP=OFF"),
}


def build(patched: bool, sanitize: str, targets: tuple[str, ...], progress: Step) -> Path:
    """Build what is missing, and return the folder of the programs.

    Needs the runtime, to know whether AMX works here.
    """
    name = f"patched-{patch_id()}" if patched else f"unpatched-{pin().llama_cpp_commit}"
    root = cache_dir() / "upstream-tests" / name
    if not (root / "llama.cpp").is_dir():
        copy_source(root / "llama.cpp", None, patched)
    folder = "build" if sanitize == PLAIN else f"build-{sanitize}"
    no_amx = bool(runtime.require_built().built["amx_disabled"])
    include = root / f"{folder}.cmake"
    include.write_text(PLAIN_COMMON if sanitize != PLAIN else "")
    options = ("-DLLAMA_BUILD_TESTS=ON", f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={include}", *OPTIONS[sanitize])
    builder.compile_source(root, targets, no_amx, progress, folder, options)
    return root / folder / "bin"
