"""Ctrl-C before a run handles signals: it is never lost, whatever catches it."""

from __future__ import annotations

import contextlib
import signal

import pytest

from sftkit.run.interruption import Interruption, remembering_interrupts


@pytest.fixture
def usual():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def swallowed():
    with contextlib.suppress(BaseException):  # as a library that is being imported
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_that_something_has_swallowed_ends_the_run(usual):
    with remembering_interrupts():
        swallowed()
        with pytest.raises(KeyboardInterrupt), Interruption():
            pytest.fail("the run has begun")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_of_an_earlier_command_does_not_end_a_run(usual):
    with pytest.raises(KeyboardInterrupt), remembering_interrupts():
        signal.raise_signal(signal.SIGINT)
    with remembering_interrupts(), Interruption() as interruption:
        assert interruption.signal is None


def test_the_handler_of_a_program_stays(usual):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with remembering_interrupts():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_command_says_that_ctrl_c_has_ended_it(flags, in_process, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("sftkit.data.cache.entries", interrupted)
    code, printed = in_process("cache", "list", *flags)
    assert code == 130
    assert "interrupted: by Ctrl-C" in printed
    assert printed.count('{"error": [{"what": "by Ctrl-C"') == len(flags)
