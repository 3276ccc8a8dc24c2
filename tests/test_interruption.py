import signal
import threading

import pytest

from companion.interruption import stop_requests

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers_are_put_back():
    before = [signal.getsignal(number) for number in NUMBERS]
    yield
    assert [signal.getsignal(number) for number in NUMBERS] == before


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_becomes_a_request(number):
    seen = []

    def work():
        with stop_requests() as request:
            seen.append(request.made)
            signal.raise_signal(number)
            seen.append(request.made)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert seen == [False, True]


def test_without_a_signal_nothing_happens():
    with stop_requests() as request:
        pass
    assert not request.made


def test_a_second_ctrl_c_interrupts_at_once_and_a_second_sigterm_does_not():
    sent = []

    @stop_requests()
    def work():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            sent.append(number)
            signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert len(sent) == 4


def test_another_error_comes_through():
    @stop_requests()
    def work():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        work()


def test_in_another_thread_signals_stay_as_they_are():
    found = []

    def work():
        with stop_requests() as request:
            found.append((signal.getsignal(signal.SIGINT), request.made))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(signal.getsignal(signal.SIGINT), False)]
