import os
import signal
import threading

import pytest

from prenorm.training.signals import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_is_a_request_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.signal_number == number
        assert signal.getsignal(number) is before  # a second signal acts as it always did
    assert signal.getsignal(number) is before


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
