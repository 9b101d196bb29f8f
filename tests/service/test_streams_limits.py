"""The limits of time and queue: who is sent away, and what becomes of the work of who has gone."""

import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from servers import NPY, Api, Live, check_problem, tensors, until
from streams import LONG_MS, connected, flat_png, send


def test_a_request_that_takes_too_long_is_dropped(serve: Callable[..., Live]) -> None:
    with Api(serve(request_timeout_s=0.3, max_wait_ms=LONG_MS).url) as api:
        stream = api.make()
        before, state = api.show(stream), api.state(stream)
        began = time.monotonic()
        check_problem(api.step(stream, tensors()), 504, "0.3 s")
        assert time.monotonic() - began < 2
        assert api.show(stream) == before
        assert api.state(stream) == state


def test_a_body_that_comes_too_slowly_is_given_up(serve: Callable[..., Live]) -> None:
    with Api(serve(request_timeout_s=0.3, max_queue=1).url) as api:
        stream = api.make()
        path = f"/v1/streams/{stream}/predict"
        given_up = threading.Event()

        def slow() -> Iterator[bytes]:
            yield b"\x93NUMPY"
            assert given_up.wait(10)

        def wait() -> None:
            until(lambda: api.post(path).status_code == 429)
            until(lambda: api.post(path).status_code == 415)
            given_up.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        answer = api.post(path, content=slow(), headers={"Content-Type": NPY})
        waiting.join()
        check_problem(answer, 504, "0.3 s")


def test_a_full_queue_says_when_to_come_back_and_work_of_who_has_gone_is_dropped(serve: Callable[..., Live]) -> None:
    server = serve(max_queue=1, max_batch=2, max_wait_ms=LONG_MS)
    with Api(server.url) as api:
        stream, other = api.make(), api.make()
        before = api.show(stream), api.show(other)

        def full() -> bool:
            """Tried with a request that would be refused for its body, if it came so far."""
            return api.post(f"/v1/streams/{other}/predict").status_code == 429

        connection = connected(server)
        send(connection, stream, flat_png(8))  # waits for another image to share its pass
        until(full)
        answer = api.step(other, tensors(2))
        check_problem(answer, 429, "1 requests")
        assert int(answer.headers["Retry-After"]) >= 1
        connection.close()
        until(lambda: not full())
        assert (api.show(stream), api.show(other)) == before
        assert api.step(other, tensors(2)).json()["step"] == 1
        assert api.show(stream) == before[0]


def test_a_client_that_leaves_within_its_body_is_no_defect(
    serve: Callable[..., Live], caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(max_queue=1)
    with Api(server.url) as api:
        stream = api.make()
        before, path = api.show(stream), f"/v1/streams/{stream}/predict"
        connection = connected(server)
        connection.putrequest("POST", path)
        connection.putheader("Content-Type", NPY)
        connection.putheader("Content-Length", "100000")
        connection.endheaders(b"\x93NUMPY")
        until(lambda: api.post(path).status_code == 429)
        connection.close()
        until(lambda: api.post(path).status_code == 415)
        assert api.show(stream) == before
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []
