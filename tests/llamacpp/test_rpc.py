"""Layers on several machines: a source and its followers may be on different devices."""

import json
import re
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from shareatt_export.llamacpp.engine import Model
from tests.support import parity, small_gguf
from tests.support.exports import export
from tests.support.parity import nmse
from tests.support.rpc_child import all_logits
from tests.support.server import free_port

# Numbers of layers on the first and the second server; the rest stays on the CPU. Layer 6 is the source of 7, 8 and 9.
BORDERS = {
    "outside the span": (6, 6),
    "behind the source": (7, 5),
    "among the followers": (8, 4),
    "source on the CPU": (2, 3),
    "source and follower on the CPU": (1, 3),
}


@contextmanager
def rpc_server(built, log):
    port = free_port()
    with log.open("wb") as out:
        command = [built.bin / "ggml-rpc-server", "-H", "127.0.0.1", "-p", str(port), "-t", "1"]
        server = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        while True:
            assert server.poll() is None, log.read_text()
            try:
                socket.create_connection(("127.0.0.1", port), 10).close()
                break
            except ConnectionError:
                time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def endpoints(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rpc")
    with ExitStack() as stack:
        yield [stack.enter_context(rpc_server(built, folder / f"log-{i}")) for i in (0, 1)]


@pytest.fixture(scope="module", params=[("6-9", None), ("6.0:7.1+8.0+8.1", "9.1,10")], ids=["layers", "KV groups"])
def shared(request, built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    spans, drop = request.param
    return export(small_gguf.write_dense(folder / "dense.gguf"), folder / "shared.gguf", spans, drop=drop)


@pytest.fixture(scope="module")
def local(shared):
    """The logits of one machine that does as the servers do: with flash attention, not with our kernels."""
    with parity.environment({parity.BUDGET: "0", parity.HYBRID: "1"}), Model(parity.lib(), shared) as model:
        return all_logits(model)


@pytest.mark.parametrize("border", BORDERS)
def test_layers_on_two_servers_compute_what_one_machine_does(built, endpoints, shared, local, tmp_path, border):
    first, second = BORDERS[border]
    out = tmp_path / "logits.npz"
    # the output layer counts as a layer, and is on the device of the last layer
    arguments = [built.python, built.bin, shared, out, first + second + 1, f"{first},{second + 1}", *endpoints]
    command = [sys.executable, "-m", "tests.support.rpc_child", *map(str, arguments)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    on_cpu = small_gguf.N_LAYER - first - second
    assert json.loads(done.stdout) == ["CPU"] * on_cpu + ["RPC0"] * first + ["RPC1"] * (second + 1)
    far = np.load(out)
    for name, expected in local.items():
        assert nmse(far[name], expected) < 1e-10


def test_run_with_rpc(built, endpoints, demo_dense, tmp_path):
    """`run` gives the arguments after -- to llama.cpp, as the documentation says."""
    shared = export(demo_dense, tmp_path / "shared.gguf")

    def generate(*options):
        command = [sys.executable, "-m", "shareatt_export", "run", shared, "-p", "import os\n", "-n", "16", "--"]
        command += ["--temp", "0", "-t", "1", "--ignore-eos", "-lv", "5", *options]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
        return done.stdout, set(re.findall(r"assigned to device (\w+)", done.stderr))

    text, devices = generate()
    assert devices == {"CPU"} and len(text) > 16
    assert generate("--rpc", ",".join(endpoints)) == (text, {"RPC0", "RPC1"})


def log_of_loading(built, endpoints, file, *options):
    """Return the log of llama-completion with all devices, and its exit status."""
    command = [
        built.bin / "llama-completion",
        "-m",
        file,
        "--rpc",
        ",".join(endpoints),
        "-n",
        "1",
        "-p",
        "a",
        "-no-cnv",
    ]
    done = subprocess.run([*map(str, command), *options], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.stderr, done.returncode


def test_a_span_on_two_devices_is_said_once_with_the_options_that_avoid_it(built, endpoints, demo_dense, tmp_path):
    file = export(demo_dense, tmp_path / "shared.gguf")

    def warnings(*options):
        log, status = log_of_loading(built, endpoints[:1], file, *options)
        assert status == 0, log
        return re.findall(r"layers (\d+) and (\d+) of a span are on different devices.*; (.*)", log)

    n_layer = 12
    (warning,) = warnings("-ngl", "5")  # layers 8 and 9 of the span 6-9 are on the device
    assert warning == ("6", "8", f"-ngl {n_layer - 9} or -ngl {n_layer + 1 - 6} keeps the span together")
    assert not warnings("-ngl", str(n_layer - 9)) and not warnings("-ngl", str(n_layer + 1 - 6))


def test_a_tensor_split_is_refused(built, endpoints, demo_dense, tmp_path):
    """It may put the heads of a source and of its followers on different devices.

    llama-bench writes its log at once; llama-completion sometimes loses the end of it.
    """
    file = export(demo_dense, tmp_path / "shared.gguf")
    devices = ("--rpc", ",".join(endpoints), "-sm", "tensor")
    command = [built.bin / "llama-bench", "-v", "-m", file, *devices, "-p", "1", "-n", "0"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    reason = "a tensor split may put the heads of layer 7 and its source on different devices; use -sm layer"
    assert done.returncode == 1 and reason in done.stderr, done.stderr
