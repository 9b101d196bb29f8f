"""The events of streams, over real connections: what is told, resumed and ended."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from servers import Api, Live, check_problem, tensors
from streams import stepped


class Events:
    """The events of one connection."""

    def __init__(self, response: httpx.Response) -> None:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        self._lines = response.iter_lines()
        assert next(self._lines).startswith(":")  # from here on nothing is missed
        next(self._lines)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        fields: dict[str, Any] = {}
        for line in self._lines:
            name, _, value = line.partition(":")
            if line:
                fields[name] = value.strip()
            elif "data" in fields:
                yield {**fields, "data": json.loads(fields["data"])}
                fields = {}


@contextmanager
def watching(api: Api, stream: str, after: str | None = None) -> Iterator[Iterator[dict[str, Any]]]:
    headers = {"Last-Event-ID": after} if after else {}
    with api.stream("GET", f"/v1/streams/{stream}/events", headers=headers) as response:
        yield iter(Events(response))


def test_events_tell_what_happens_and_resume(api: Api) -> None:
    stream = stepped(api, api.make(), 1)
    sid = api.post(f"/v1/streams/{stream}/snapshots").json()["id"]
    with watching(api, stream) as events:
        answer = api.step(stream, tensors(3, 2)).json()
        api.step(stream, tensors(), adapt=False)
        api.post(f"/v1/streams/{stream}/restore", json={"snapshot": sid})
        api.post(f"/v1/streams/{stream}/reset")
        seen = [next(events) for _ in range(3)]
    assert [(event["event"], event["data"]["step"], event["data"]["version"]) for event in seen] == [
        ("step", 2, 3),
        ("restore", 1, 4),
        ("reset", 0, 5),
    ]
    step = seen[0]["data"]
    assert step["images"] == 3
    assert step["entropy"] == pytest.approx(np.mean([image["entropy"] for image in answer["predictions"]]), abs=1e-4)
    assert list(step["drift"]) == [layer["path"] for layer in api.get("/v1/models/tiny").json()["norm_layers"]]
    assert all(value >= 0 for value in step["drift"].values())

    stepped(api, stream, 4)  # while nobody watches
    with watching(api, stream, after=seen[1]["id"]) as events:
        assert next(events) == seen[2]
        assert next(events)["data"]["step"] == 1
        api.delete(f"/v1/streams/{stream}")
        assert [event["event"] for event in events] == ["deleted"]
    with watching(api, stream, after=seen[2]["id"]) as events:
        assert [event["event"] for event in events] == ["step", "deleted"]
    check_problem(api.get(f"/v1/streams/{stream}/events"), 404)


def test_events_of_one_stream_do_not_tell_of_another(api: Api) -> None:
    stream, other = api.make(), api.make()
    with watching(api, stream) as events:
        stepped(api, other, 1, 2)
        stepped(api, stream, 3)
        assert next(events)["data"]["step"] == 1


def test_events_end_when_the_server_drains(serve: Callable[..., Live]) -> None:
    server = serve()
    with Api(server.url) as api:
        stream = api.make()
        with watching(api, stream) as events:
            stepped(api, stream, 1)
            assert next(events)["event"] == "step"
            server.terminate()
            assert list(events) == []
    server.thread.join(10)
    assert not server.thread.is_alive()


def test_readers_that_leave_do_not_disturb_the_others(api: Api) -> None:
    stream = api.make()
    with watching(api, stream) as staying:
        for _ in range(5):
            with watching(api, stream):
                pass
        stepped(api, stream, 1)
        assert next(staying)["data"]["step"] == 1
