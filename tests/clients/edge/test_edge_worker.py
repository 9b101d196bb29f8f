"""A thread that takes turns."""

import threading
import time

from normstream.clients.edge.worker import Worker


def test_a_turn_is_taken_when_it_is_due_or_the_worker_woken():
    turns = threading.Semaphore(0)
    pauses = iter([0.0, 0.0, 3600.0, 3600.0])

    def turn():
        turns.release()
        return next(pauses)

    worker = Worker("turns", turn)
    worker.start()
    for _ in range(3):
        assert turns.acquire(timeout=10)
    assert not turns.acquire(timeout=0.1)
    worker.wake()
    assert turns.acquire(timeout=10)
    worker.stop()
    assert worker.join(10)


def test_a_turn_that_fails_is_not_taken_again_at_once_whoever_wakes_it(caplog):
    turns = 0

    def turn():
        nonlocal turns
        turns += 1
        raise RuntimeError("no memory")

    worker = Worker("turns", turn)
    worker.start()
    deadline = time.monotonic() + 10
    while "no memory" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for _ in range(20):
        worker.wake()
        time.sleep(0.005)
    assert turns == 1
    worker.stop()
    assert worker.join(10)


def test_a_worker_that_was_never_started_has_ended():
    assert Worker("turns", lambda: 0.0).join(0)
