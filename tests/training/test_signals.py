import os
import signal
import threading

import pytest

from prenorm.training.signals import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_first_signal_is_a_request_and_the_handlers_come_back(number):
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    with stop_on_signals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.signal_number == number
        assert stop.by_hand == (number == signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]  # Ctrl-C acts at once from now on
    assert {each: signal.getsignal(each) for each in before} == before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_second_sigterm_or_sigusr1_changes_nothing(first):
    with stop_on_signals() as stop:
        for number in (first, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.signal_number == first


def test_a_second_ctrl_c_acts_at_once():
    def twice():
        with stop_on_signals():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        twice()


def test_in_another_thread_there_are_no_signals_and_no_error():
    stopped = []

    def work():
        with stop_on_signals() as stop:
            stopped.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert stopped == [False]
