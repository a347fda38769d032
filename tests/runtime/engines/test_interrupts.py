"""Ctrl-C while it must not be raised: noted, raised later, and at the second time obeyed at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from visrt.runtime.engines.trt.interrupts import deferred_interrupt


def test_ctrl_c_is_noted_and_raised_at_the_end() -> None:
    reached: list[bool] = []

    def work() -> None:
        with deferred_interrupt() as pressed:
            reached.append(pressed())
            signal.raise_signal(signal.SIGINT)
            reached.append(pressed())

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == [False, True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_is_raised_in_place_of_the_error_it_has_caused() -> None:
    def work() -> None:
        with deferred_interrupt():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("the build was cancelled")

    with pytest.raises(KeyboardInterrupt):
        work()


def test_without_ctrl_c_nothing_is_raised_and_errors_pass() -> None:
    with deferred_interrupt() as pressed:
        assert not pressed()
    with pytest.raises(ValueError, match="as it is"), deferred_interrupt():
        raise ValueError("as it is")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_the_program_s_own_is_left_alone() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with deferred_interrupt() as pressed:
            signal.raise_signal(signal.SIGINT)
            assert not pressed()
        assert heard == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_there_is_nothing_to_defer() -> None:
    answers: list[bool] = []

    def work() -> None:
        with deferred_interrupt() as pressed:
            answers.append(pressed())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]


PROGRAM = """
import signal
from visrt.runtime.engines.trt.interrupts import deferred_interrupt
with deferred_interrupt():
    signal.raise_signal(signal.SIGINT)
    print("once", flush=True)
    signal.raise_signal(signal.SIGINT)
    print("twice", flush=True)
"""


def test_the_second_ctrl_c_ends_the_process_at_once() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGINT
    assert ended.stdout == "once\n"
