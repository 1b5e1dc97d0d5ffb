"""Signals that wait for the end of a block."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from shareatt_export.system.signals import HeldSignals

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def handlers():
    def stop(number, frame):
        raise SystemExit(number)

    before = [signal.signal(number, stop) for number in SIGNALS]
    yield stop
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_they_wait_for_the_end_of_the_block(handlers, number):
    done = []
    with pytest.raises(SystemExit) as exit, HeldSignals() as held:
        signal.raise_signal(number)
        done.append(list(held.received))
        raise OSError("of the block")
    assert done == [[number]] and exit.value.code == number
    assert all(signal.getsignal(number) is handlers for number in SIGNALS)


def test_blocks_within_blocks():
    done = []
    with pytest.raises(SystemExit), HeldSignals():
        with HeldSignals():
            signal.raise_signal(signal.SIGINT)
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]


def test_without_a_signal_nothing_happens(handlers):
    with HeldSignals() as held:
        pass
    assert held.received == [] and signal.getsignal(signal.SIGINT) is handlers


def test_what_has_no_handler_is_left_alone():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with HeldSignals() as held:
        signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    assert held.received == []


def test_other_threads_have_no_say(handlers):
    def work():
        with HeldSignals():
            return signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() is handlers
