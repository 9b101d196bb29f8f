"""Both clients against a real server on loopback."""

import asyncio
import inspect
import io
import time
from contextlib import aclosing

import examples
import httpx
import numpy as np
import pytest
from loopback import DROP, EVENTS, HANG, Reply, events, problem, say, unused_url

from normstream import clients
from normstream.clients import AsyncClient, Client
from normstream.clients.errors import (
    ConnectionFailed,
    InvalidArgument,
    InvalidInput,
    NotFound,
    Overloaded,
    Unavailable,
    UnexpectedAnswer,
)


class Blocking:
    """Drives an AsyncClient as if it were a Client, so that each test runs with both."""

    def __init__(self, *args, **settings):
        self.runner = asyncio.Runner()
        self.client = AsyncClient(*args, **settings)

    def __enter__(self):
        self.runner.run(self.client.__aenter__())
        return self

    def __exit__(self, *details):
        self.runner.run(self.client.__aexit__(*details))
        self.runner.close()

    def __getattr__(self, name):
        def call(*args, **kwargs):
            made = getattr(self.client, name)(*args, **kwargs)
            return self.runner.run(made if inspect.iscoroutine(made) else everything(made))

        return call


async def everything(iterator):
    return [item async for item in iterator]


@pytest.fixture(params=[Client, Blocking], ids=["sync", "async"])
def make(request):
    return request.param


@pytest.fixture
def client(make, server):
    with make(server.url, timeout_s=5) as client:
        yield client


def test_models(client, server):
    server.will(say(examples.MODELS), say(examples.MODEL), say(examples.RECIPES))
    assert client.models().default == "tf_efficientnet_lite0"
    assert client.model("tf_efficientnet_lite0").classes == 1000
    assert client.recipes().presets == {"alpha_bn": examples.RECIPE}
    assert server.calls == ["GET /v1/models", "GET /v1/models/tf_efficientnet_lite0", "GET /v1/recipes"]


def test_the_life_of_a_stream(client, server):
    stream, snapshot = say(examples.STREAM), say(examples.SNAPSHOT, 201)
    listed = say({"snapshots": [examples.SNAPSHOT]})
    server.will(say(examples.STREAM, 201), stream, stream, snapshot, listed, stream, stream, Reply(204))
    assert client.create_stream("gate-3").id == "gate-3"
    assert client.stream("gate-3").step == 41
    assert client.reset("gate-3").version == 43
    assert client.snapshot("gate-3").id == "snap-7d3f"
    assert [snapshot.bytes for snapshot in client.snapshots("gate-3")] == [168900]
    assert client.restore("gate-3", "snap-7d3f").id == "gate-3"
    assert client.fork("gate-3", "gate-4").id == "gate-3"
    assert client.delete_stream("gate-3") is None
    assert server.calls == [
        "POST /v1/streams",
        "GET /v1/streams/gate-3",
        "POST /v1/streams/gate-3/reset",
        "POST /v1/streams/gate-3/snapshots",
        "GET /v1/streams/gate-3/snapshots",
        "POST /v1/streams/gate-3/restore",
        "POST /v1/streams/gate-3/fork",
        "DELETE /v1/streams/gate-3",
    ]
    assert server.seen[5].json == {"snapshot": "snap-7d3f"}
    assert server.seen[6].json == {"id": "gate-4"}


def test_snapshots_are_carried(client, server):
    server.will(Reply(200, b"\x00state"), say(examples.SNAPSHOT, 201), Reply(204))
    assert client.download_snapshot("snap-7d3f") == b"\x00state"
    assert client.upload_snapshot("snap-8", b"\x00state").id == "snap-7d3f"
    assert client.delete_snapshot("snap-8") is None
    assert server.calls == ["GET /v1/snapshots/snap-7d3f", "PUT /v1/snapshots/snap-8", "DELETE /v1/snapshots/snap-8"]
    assert server.seen[1].body == b"\x00state"


def test_an_odd_name_is_one_part_of_the_path(client, server):
    server.will(say(examples.MODEL))
    client.model("hf-hub:a/b c")
    assert server.calls == ["GET /v1/models/hf-hub%3Aa%2Fb%20c"]


def test_streams_of_all_pages(client, server):
    pages = [({**examples.STREAM, "id": name}, after) for name, after in [("a", "a"), ("b", None)]]
    server.will(*(say({"streams": [stream], "next": after}) for stream, after in pages))
    assert [stream.id for stream in client.streams()] == ["a", "b"]
    assert [seen.query for seen in server.seen] == [{"limit": "100"}, {"limit": "100", "after": "a"}]


def test_predict(client, server):
    server.will(say(examples.PREDICTION))
    prediction = client.predict("gate-3", [b"jpeg"], top_k=1)
    assert prediction.predictions[0].top[0].label == "zebra"
    assert server.seen[0].query == {"adapt": "true", "top_k": "1", "output": "topk"}
    assert b"jpeg" in server.seen[0].body


def test_predict_an_array_to_an_array(client, server):
    values = np.full((2, 4), 0.25, np.float32)
    buffer = io.BytesIO()
    np.save(buffer, values)
    headers = {"Normstream-Step": "1", "Normstream-Version": "2", "Normstream-Adapted": "false"}
    headers["Normstream-Samples"] = "9f1c2b7a5d3e4f60"
    server.will(Reply(200, buffer.getvalue(), headers))
    images = np.zeros((2, 3, 4, 4), np.float32)
    prediction = client.predict("gate-3", images, output="probs", adapt=False)
    np.testing.assert_array_equal(prediction.values, values)
    assert (prediction.step, prediction.version, prediction.adapted) == (1, 2, False)
    assert prediction.samples == ("9f1c2b7a5d3e4f60-0", "9f1c2b7a5d3e4f60-1")
    np.testing.assert_array_equal(np.load(io.BytesIO(server.seen[0].body)), images)


def test_labels_of_what_was_predicted(client, server):
    server.will(say(examples.PREDICTION), say(examples.LABELLING))
    (sample,) = client.predict("gate-3", [b"jpeg"]).samples
    answer = client.label("gate-3", {sample: "zebra"})
    assert (answer.labelled, answer.duplicates, answer.scores.correct) == (4, 1, 9)
    assert answer.learning.new_classes == ("okapi",)
    assert server.calls[1] == "POST /v1/streams/gate-3/labels"
    assert server.seen[1].query == {"learn": "true"}
    assert server.seen[1].json == {"labels": [{"sample": "9f1c2b7a5d3e4f60-0", "label": "zebra"}]}


def test_images_with_their_labels(client, server):
    server.will(say(examples.LABELLING))
    client.label_images("gate-3", [b"jpeg", b"other"], ["zebra", 7], learn=False, idempotency_key="day-7")
    (seen,) = server.seen
    assert (seen.query, seen.headers["Idempotency-Key"]) == ({"learn": "false"}, "day-7")
    assert all(part in seen.body for part in (b"jpeg", b"other", b'[{"label": "zebra"}, {"class": 7}]'))


def test_scores(client, server):
    server.will(say(examples.STREAM_SCORES), say({**examples.STREAM_SCORES, "learning": None}))
    told = client.scores("gate-3")
    assert (told.scores.accuracy, told.scores.window.ece, told.classes) == (0.75, 0.125, ("zebra", "okapi"))
    assert (told.learning.lessons, told.learning.steps) == (7, ())
    assert client.scores("gate-3").learning is None
    assert server.calls == ["GET /v1/streams/gate-3/labels"] * 2


def test_edges_of_all_pages(client, server):
    pages = [({**examples.EDGE, "id": name}, after) for name, after in [("a", "a"), ("b", None)]]
    server.will(*(say({"edges": [edge], "next": after}) for edge, after in pages))
    assert [edge.id for edge in client.edges()] == ["a", "b"]
    assert [seen.query for seen in server.seen] == [{"limit": "100"}, {"limit": "100", "after": "a"}]


def test_an_edge(client, server):
    server.will(say(examples.EDGE), DROP, problem(404))
    edge = client.edge("gate-3")
    assert (edge.samples.pending, edge.report.excluded["unreliable"], edge.last_seen.year) == (32, 900, 2026)
    assert client.delete_edge("gate-3") is None
    assert server.calls == ["GET /v1/edges/gate-3", *["DELETE /v1/edges/gate-3"] * 2]


@pytest.mark.parametrize("trouble", [problem(503), problem(429), DROP])
def test_labels_are_sent_again_as_they_were(client, server, trouble):
    server.will(trouble, say(examples.LABELLING))
    picture = np.zeros((2, 2, 3), np.uint8)
    client.label("gate-3", [("9f1c2b7a5d3e4f60-0", "zebra"), (picture, "okapi")])
    first, second = server.seen
    assert first == second
    assert first.headers["Idempotency-Key"]


@pytest.mark.parametrize("trouble", [problem(503), problem(502), problem(504), problem(429), DROP])
def test_predict_is_sent_again_as_it_was(client, server, trouble):
    server.will(trouble, say(examples.PREDICTION))
    assert client.predict("gate-3", [b"jpeg", np.zeros((2, 2, 3), np.uint8)]).step == 42
    first, second = server.seen
    assert first == second
    assert first.headers["Idempotency-Key"]


def test_a_late_answer_is_asked_for_again(make, server):
    server.will(HANG, say(examples.STREAM))
    with make(server.url, timeout_s=0.3) as client:
        assert client.stream("gate-3").id == "gate-3"
    assert len(server.seen) == 2


def test_an_answer_that_breaks_off_is_asked_for_again(client, server):
    server.will(Reply(200, b"half", {"Content-Length": "8"}, open_end=True), Reply(200, b"the whole"))
    assert client.download_snapshot("s") == b"the whole"


def test_retry_after_is_honoured(client, server):
    server.will(problem(429, **{"Retry-After": "0.4"}), say(examples.STREAM))
    start = time.monotonic()
    client.stream("gate-3")
    assert 0.4 <= time.monotonic() - start < 3.0


def test_retries_end_with_the_last_error(make, server):
    server.will(*[problem(429, "Queue full", "Come back later.")] * 3)
    with make(server.url, retries=2) as client, pytest.raises(Overloaded, match=r"Queue full \(429\): Come back"):
        client.stream("gate-3")
    assert len(server.seen) == 3


def test_a_verdict_is_raised_at_once(client, server):
    server.will(Reply(422, b'{"title": "Bad recipe", "errors": [{"where": "body.recipe", "problem": "unknown"}]}'))
    with pytest.raises(InvalidInput, match=r"Bad recipe \(422\) \[body.recipe: unknown\]"):
        client.create_stream("gate-3", recipe="none")
    assert len(server.seen) == 1


@pytest.mark.parametrize("trouble", [problem(503), DROP])
def test_a_snapshot_is_not_taken_twice(client, server, trouble):
    server.will(trouble, say(examples.SNAPSHOT, 201))
    with pytest.raises((Unavailable, ConnectionFailed)):
        client.snapshot("gate-3")
    assert server.calls == ["POST /v1/streams/gate-3/snapshots"]


def test_a_stream_without_an_id_is_created_once(client, server):
    server.will(DROP, say(examples.STREAM))
    client.create_stream()
    assert server.seen[0].json == server.seen[1].json


def test_a_fork_whose_answer_was_lost_is_found(client, server):
    server.will(DROP, problem(409), say(examples.STREAM))
    client.fork("gate-3")
    new = server.seen[0].json["id"]
    assert server.calls == ["POST /v1/streams/gate-3/fork"] * 2 + [f"GET /v1/streams/{new}"]


def test_a_delete_whose_answer_was_lost_is_done(client, server):
    server.will(DROP, problem(404), problem(404))
    client.delete_stream("gate-3")
    with pytest.raises(NotFound):
        client.delete_stream("gate-3")


def test_nobody_there(make):
    url = unused_url()
    with make(url, retries=1) as client, pytest.raises(ConnectionFailed, match=f"GET {url}/v1/models"):
        client.models()


def test_another_kind_of_server(client, server):
    server.will(Reply(200, b"<html>hello</html>", {"Content-Type": "text/html"}))
    with pytest.raises(UnexpectedAnswer):
        client.models()


def test_wrong_images_are_never_sent(client, server):
    with pytest.raises(InvalidArgument, match="cannot read"):
        client.predict("gate-3", "nowhere.jpg")
    assert server.seen == []


def test_ready(client, server):
    server.will(say({}), problem(503, "Draining"), problem(504))
    assert [client.ready() for _ in range(3)] == [True, False, False]
    assert server.calls == ["GET /readyz"] * 3


def test_nobody_is_not_ready(make):
    with make(unused_url()) as client:
        assert client.ready() is False


def test_not_ready_for_want_of_the_path_is_an_error(client, server):
    server.will(problem(404))
    with pytest.raises(NotFound):
        client.ready()


def test_events_go_on_where_they_broke_off(client, server):
    server.will(
        Reply(200, b': hi\n\nid: 1\nevent: step\ndata: {"step": 1}\n\nevent: step\ndata: {"st', EVENTS, open_end=True),
        problem(503),
        DROP,
        events('id: 2\nevent: reset\ndata: {"step": 0, "version": 2}', "id: 3\nevent: deleted\ndata: {}"),
    )
    seen = list(client.events("gate-3"))
    assert [(event.id, event.kind, event.step) for event in seen] == [
        ("1", "step", 1),
        ("2", "reset", 0),
        ("3", "deleted", None),
    ]
    assert [request.headers.get("Last-Event-ID") for request in server.seen] == [None, "1", "1", "1"]


def test_events_after_a_given_one(client, server):
    server.will(events("event: deleted\ndata: {}"))
    assert len(list(client.events("gate-3", "41"))) == 1
    assert server.seen[0].headers["Last-Event-ID"] == "41"


def test_events_of_no_stream(client, server):
    server.will(problem(404, "Unknown stream", "There is no stream 'gate-4'."))
    with pytest.raises(NotFound, match="There is no stream 'gate-4'"):
        list(client.events("gate-4"))


def test_events_that_never_come(make, server):
    server.will(*[Reply(200, b"", EVENTS, open_end=True)] * 3)
    with make(server.url, retries=2) as client, pytest.raises(ConnectionFailed, match="the events broke off"):
        list(client.events("gate-3"))
    assert len(server.seen) == 3


def test_leaving_events_early_frees_the_connection(server):
    server.will(events('event: step\ndata: {"step": 1}', 'event: step\ndata: {"step": 2}'), say(examples.STREAM))
    with Client(server.url) as client:
        following = client.events("gate-3")
        assert next(following).step == 1
        following.close()
        assert client.stream("gate-3").step == 41


async def test_leaving_async_events_early_frees_the_connection(server):
    server.will(events('event: step\ndata: {"step": 1}', 'event: step\ndata: {"step": 2}'), say(examples.STREAM))
    async with AsyncClient(server.url) as client:
        async with aclosing(client.events("gate-3")) as following:
            assert (await anext(following)).step == 1
        assert (await client.stream("gate-3")).step == 41


async def test_async_calls_run_side_by_side(server):
    server.will(*[say(examples.STREAM)] * 8)
    async with AsyncClient(server.url) as client:
        streams = await asyncio.gather(*(client.stream("gate-3") for _ in range(8)))
    assert [stream.id for stream in streams] == ["gate-3"] * 8


def test_the_environment_names_the_server(make, server, monkeypatch):
    monkeypatch.setenv("NORMSTREAM_URL", server.url)
    server.will(say(examples.MODELS))
    with make() as client:
        assert len(client.models()) == 1


def test_a_server_below_a_path(make, server):
    server.will(say(examples.MODELS))
    with make(f"{server.url}/vision/") as client:
        client.models()
    assert server.calls == ["GET /vision/v1/models"]


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "/v1", "http://", "http://host:port", "http://[::1"])
def test_a_wrong_url_is_refused(make, url):
    with pytest.raises(InvalidArgument, match="give one like http://127"):
        make(url)


def test_another_transport():
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=examples.MODELS))
    with Client("http://normstream.test", transport=transport) as client:
        assert len(client.models()) == 1


def test_the_clients_have_the_same_methods():
    def signatures(kind):
        public = {name: f for name, f in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}
        return {name: list(inspect.signature(function).parameters.values()) for name, function in public.items()}

    sync, asynchronous = signatures(Client), signatures(AsyncClient)
    assert sync == asynchronous
    assert len(sync) == 27


def test_the_public_names():
    assert clients.__all__ == sorted(clients.__all__)
    assert all(hasattr(clients, name) for name in clients.__all__)
