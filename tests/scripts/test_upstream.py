"""scripts/upstream: the outcome of a test program's output, and the regressions."""

import pytest

from scripts.upstream import record
from scripts.upstream.__main__ import moved, regressions
from scripts.upstream.outcome import FOUND, Outcome, Run
from scripts.upstream.record import Results, Row

PASS = Outcome("", frozenset())
CRASH = Outcome("", frozenset({"crash in sub-test 7"}))
SUB_TESTS = "=== Test 1: one ===\n5 6\n=== Test 2: two ===\nPASS\n=== Test 3: three ===\n"
LEAK = """==7==ERROR: LeakSanitizer: detected memory leaks

Direct leak of 10 byte(s) in 1 object(s) allocated from:
    #0 0x7f8a in malloc ../../../../src/libsanitizer/asan/asan_malloc_linux.cpp:69
    #1 0x55d3 in keep(int) /x/llama.cpp/src/llama-kv-cache.cpp:12

SUMMARY: AddressSanitizer: 10 byte(s) leaked in 1 allocation(s).
"""
OVERFLOW = """==7==ERROR: AddressSanitizer: heap-buffer-overflow on address 0x60 at pc 0x55 bp 0x7f sp 0x7f
READ of size 4 at 0x60 thread T0
    #0 0x55 in llama_kv_cache::get_k(ggml_context*) const ../llama.cpp/src/llama-kv-cache.cpp:99
    #1 0x55 in main ../llama.cpp/tests/test-x.cpp:1
SUMMARY: AddressSanitizer: heap-buffer-overflow ../llama.cpp/src/llama-kv-cache.cpp:99
"""
RACE = """WARNING: ThreadSanitizer: data race (pid=7)
  Read of size 4 at 0x55 by main thread:
    #0 <null> <null> (libstdc++.so.6+0xd44a2)
    #1 compute(int) llama.cpp/ggml/src/ggml.c:9 (libggml.so+0x14)
SUMMARY: ThreadSanitizer: data race llama.cpp/ggml/src/ggml.c:9 in compute
"""


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (0, "101/101 tests passed\n", "pass (101/101 tests passed)"),
        (0, "", "pass"),
        (None, "", "no end within 1800 s"),
        (-11, SUB_TESTS, "crash in sub-test 3"),
        (1, SUB_TESTS, "exit status 1, FAIL: sub-test 3"),
        (1, "a.gguf  PASS  FAIL\nb.gguf  PASS  PASS\n", "exit status 1, FAIL: a.gguf"),
        (-6, "/x/common/common.cpp:12: it: failed\n", "SIGABRT: it: failed"),
        (FOUND, LEAK, "leak: llama-kv-cache.cpp: keep"),
        (FOUND, OVERFLOW, "heap-buffer-overflow: llama-kv-cache.cpp: llama_kv_cache::get_k"),
        (FOUND, RACE, "data race: ggml.c: compute"),
        (FOUND, "nothing else", "exit status 99"),
        (
            0,
            "/x/src/a.cpp:9:5: runtime error: load of value 190, which is\n",
            "UBSan: a.cpp: load of value N, which is",
        ),
    ],
)
def test_outcome(status, output, expected):
    assert str(Run(status, output).outcome()) == expected


def row(unpatched: Outcome, patched: Outcome, shared: Outcome) -> dict[str, Row]:
    return {"test": Row({"unpatched": {"m": unpatched}, "patched": {"m": patched}, "SA": {"m 6-9": shared}})}


@pytest.mark.parametrize(
    ("rows", "n"),
    [
        (row(PASS, PASS, PASS), 0),
        (row(CRASH, CRASH, CRASH), 0),  # a crash of llama.cpp itself
        (row(PASS, CRASH, PASS), 1),
        (row(PASS, PASS, CRASH), 1),
        (row(CRASH, PASS, PASS), 1),  # the patch changed a result, although to a better one
        (row(Outcome("9 passed", frozenset()), Outcome("8 passed", frozenset()), PASS), 1),
        (row(Outcome("9 passed", frozenset()), PASS, PASS), 0),  # its last line was lost
    ],
)
def test_regressions(rows, n):
    assert len(list(regressions(rows, True, {"m 6-9": "m"}))) == n


def test_a_sanitizer_may_find_upstreams_own_in_another_model():
    found = {
        "test": Row({"unpatched": {"a": CRASH, "b": PASS}, "patched": {"a": PASS, "b": CRASH}, "SA": {"c": CRASH}})
    }
    assert not list(regressions(found, False, {}))
    found["test"].columns["SA"]["c"] = Outcome("", frozenset({"leak"}))
    assert len(list(regressions(found, False, {}))) == 1


def test_records_come_back_and_are_held_against(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "DOCS", tmp_path)
    assert record.load() == {}
    results = Results("2025-01-01", "command", "0c1e57098", "patch", row(CRASH, CRASH, PASS))
    record.save({"none": results})
    assert record.load() == {"none": results}
    assert "| `test` | 1 [1] | 1 [1] | 1 pass |" in (tmp_path / "upstream-tests.md").read_text()
    assert list(moved(row(CRASH, PASS, PASS), results)) == []
    assert len(list(moved(row(PASS, PASS, PASS), results))) == 1
