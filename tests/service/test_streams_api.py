"""What the service promises of streams, over real connections."""

import io
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from redis import Redis
from servers import NPY, Api, Live, check_problem, new_id, npy, tensors, until

from normstream.adaptation import PRESETS, catalogue, decode
from normstream.adaptation.member import Need
from normstream.service.storage.keyspace import Keyspace

KEYS = Keyspace("normstream")
LONG_MS = 60_000  # longer than any test


def together(*calls: Callable[[], Any]) -> list[Any]:
    """All at once, each on a thread of its own."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result() for future in [threads.submit(call) for call in calls]]


def keyed(api: Api, stream: str, key: str, seed: int = 0, **query: Any) -> httpx.Response:
    headers = {"Content-Type": NPY, "Idempotency-Key": key}
    return api.post(f"/v1/streams/{stream}/predict", content=npy(tensors(1, seed)), headers=headers, params=query)


def stepped(api: Api, stream: str, *seeds: int) -> str:
    for seed in seeds:
        assert api.step(stream, tensors(1, seed)).status_code == 200
    return stream


# Streams and their counters


def test_a_stream_is_made_found_shown_and_listed(api: Api) -> None:
    given = {"id": new_id(), "recipe": {"norm": {"name": "alpha_bn", "alpha": 0.25}}, "idle_ttl_s": 900}
    made = api.post("/v1/streams", json=given)
    assert made.status_code == 201
    stream = made.json()
    model = api.get("/v1/models/tiny").json()
    assert {**stream, **given} == stream
    assert (stream["model"], stream["fingerprint"]) == ("tiny", model["fingerprint"])
    assert (stream["step"], stream["version"]) == (0, 1)
    assert stream["created_at"] == stream["updated_at"]
    assert stream["state_bytes"] == len(api.state(given["id"]))
    again = api.post("/v1/streams", json=given)
    assert (again.status_code, again.json()) == (200, stream)
    assert api.show(given["id"]) == stream


def test_all_of_a_stream_may_be_left_out(api: Api) -> None:
    first, second = (api.post("/v1/streams", json={}).json() for _ in range(2))
    assert first["id"] != second["id"]
    assert first["recipe"] == api.get("/v1/recipes").json()["presets"]["alpha_bn"]
    assert first["model"] == api.get("/v1/models").json()["default"] == "tiny"
    assert first["idle_ttl_s"] is None


def test_streams_are_listed_page_by_page_in_order_of_id(api: Api) -> None:
    prefix = new_id("page")
    ids = [api.make(f"{prefix}-{n}") for n in (3, 1, 0, 4, 2)]
    found, after = [], f"{prefix}-"
    for size in (2, 2, 1):
        page = api.get("/v1/streams", params={"limit": size, "after": after}).json()
        assert len(page["streams"]) == size
        assert page["streams"][-1] == api.show(page["streams"][-1]["id"])
        found += [stream["id"] for stream in page["streams"]]
        after = page["next"] or found[-1]
    assert found == sorted(ids)
    assert api.get("/v1/streams", params={"after": "zzzz"}).json() == {"streams": [], "next": None}


def test_steps_and_versions_count_as_promised(api: Api) -> None:
    stream = api.make()

    def counters() -> tuple[int, int]:
        shown = api.show(stream)
        return shown["step"], shown["version"]

    answer = api.step(stream, tensors(3)).json()
    assert (answer["step"], answer["version"], answer["adapted"]) == (1, 2, True)
    assert counters() == (1, 2)
    answer = api.step(stream, tensors(3), adapt=False).json()
    assert (answer["step"], answer["version"], answer["adapted"]) == (1, 2, False)
    assert counters() == (1, 2)
    sid = api.post(f"/v1/streams/{stream}/snapshots").json()["id"]
    assert counters() == (1, 2)
    stepped(api, stream, 1, 2)
    assert counters() == (3, 4)
    assert api.post(f"/v1/streams/{stream}/restore", json={"snapshot": sid}).json()["step"] == 1
    assert counters() == (1, 5)
    assert api.post(f"/v1/streams/{stream}/reset").json()["version"] == 6
    assert counters() == (0, 6)


def test_a_stream_made_anew_is_another_generation_at_its_beginning(api: Api) -> None:
    stream = stepped(api, api.make(), 1, 2)
    before = api.show(stream)
    assert api.delete(f"/v1/streams/{stream}").status_code == 204
    check_problem(api.get(f"/v1/streams/{stream}"), 404)
    api.make(stream)
    after = api.show(stream)
    assert (after["step"], after["version"]) == (0, 1)
    assert after["generation"] != before["generation"]


SERVED = [
    method.name
    for method in catalogue()
    if not method.calibration and method.layers != Need.SAMPLE_NORM.value and PRESETS[method.name].teacher is None
]  # by the tiny model, which is not calibrated, has batch norms alone, and steps by what it predicts


@pytest.mark.parametrize("recipe", SERVED)
def test_a_reset_stream_is_as_a_new_one_to_the_bit(api: Api, recipe: str) -> None:
    new, used = api.make(recipe=recipe), api.make(recipe=recipe)
    source = api.logits(new, tensors(2, 9))
    stepped(api, used, 1, 2, 3)
    state = decode(api.state(new))
    if state.recipe.update is None and any(name.startswith("norm.") for name in state.tensors):
        assert not np.array_equal(api.logits(used, tensors(2, 9)), source)
    assert api.state(used) != api.state(new)
    assert api.post(f"/v1/streams/{used}/reset").status_code == 200
    assert api.state(used) == api.state(new)
    np.testing.assert_array_equal(api.logits(used, tensors(2, 9)), source)


# Snapshots and forks


def test_a_snapshot_is_kept_listed_downloaded_uploaded_restored_and_deleted(api: Api) -> None:
    stream = stepped(api, api.make(), 1)
    first = api.post(f"/v1/streams/{stream}/snapshots").json()
    logits = api.logits(stream, tensors(1, 9))
    stepped(api, stream, 2)
    second = api.post(f"/v1/streams/{stream}/snapshots").json()
    assert api.get(f"/v1/streams/{stream}/snapshots").json() == {"snapshots": [second, first]}
    assert (first["stream"], first["model"], first["step"], second["step"]) == (stream, "tiny", 1, 2)

    download = api.get(f"/v1/snapshots/{first['id']}")
    assert download.headers["Content-Type"] == "application/octet-stream"
    assert download.headers["Content-Disposition"] == f'attachment; filename="{first["id"]}.safetensors"'
    assert len(download.content) == first["bytes"]
    assert decode(download.content).step == 1

    copy, kind = new_id("snap"), {"Content-Type": "application/octet-stream"}
    uploads = [api.put(f"/v1/snapshots/{copy}", content=download.content, headers=kind) for _ in range(2)]
    assert [upload.status_code for upload in uploads] == [201, 200]
    assert uploads[0].json() == uploads[1].json()
    assert {**uploads[0].json(), "id": first["id"], "stream": stream, "created_at": first["created_at"]} == first

    other = api.make()
    assert api.post(f"/v1/streams/{other}/restore", json={"snapshot": copy}).json()["step"] == 1
    np.testing.assert_array_equal(api.logits(other, tensors(1, 9)), logits)
    assert api.delete(f"/v1/snapshots/{copy}").status_code == 204
    check_problem(api.get(f"/v1/snapshots/{copy}"), 404)


def test_a_snapshot_outlives_its_stream(api: Api) -> None:
    stream = stepped(api, api.make(), 1)
    state = api.state(stream)
    kept = api.post(f"/v1/streams/{stream}/snapshots").json()
    api.delete(f"/v1/streams/{stream}")
    assert api.get(f"/v1/snapshots/{kept['id']}").content == state
    assert api.get(f"/v1/streams/{stream}/snapshots").json() == {"snapshots": [kept]}
    api.make(stream)
    api.post(f"/v1/streams/{stream}/restore", json={"snapshot": kept["id"]})
    assert api.state(stream) == state


def test_a_fork_begins_with_the_state_and_goes_its_own_way(api: Api) -> None:
    stream = stepped(api, api.make(idle_ttl_s=900), 1, 2)
    before, state = api.show(stream), api.state(stream)
    answer = api.post(f"/v1/streams/{stream}/fork", json={"id": new_id("fork")})
    assert answer.status_code == 201
    fork = answer.json()
    assert {
        **before,
        **{name: fork[name] for name in ("id", "generation", "version", "created_at", "updated_at")},
    } == fork
    assert (fork["step"], fork["version"]) == (2, 1)
    assert fork["generation"] != before["generation"]
    assert api.state(fork["id"]) == state
    stepped(api, fork["id"], 3)
    assert api.show(stream) == before
    assert api.state(stream) == state
    unnamed = api.post(f"/v1/streams/{stream}/fork")
    assert unnamed.status_code == 201
    assert unnamed.json()["id"].startswith(stream)


# Idempotency


def test_a_request_that_comes_again_gets_its_first_answer_and_adapts_once(api: Api) -> None:
    stream = api.make()
    first = keyed(api, stream, "k")
    stepped(api, stream, 5)
    again = keyed(api, stream, "k")
    assert "Idempotent-Replay" not in first.headers
    assert again.headers["Idempotent-Replay"] == "true"
    assert again.content == first.content
    for name in ("Content-Type", "Normstream-Step", "Normstream-Version", "Normstream-Adapted", "Normstream-Model"):
        assert again.headers[name] == first.headers[name]
    assert api.show(stream)["step"] == 2
    assert keyed(api, stream, "l").json()["step"] == 3
    assert keyed(api, api.make(), "k").json()["step"] == 1  # keys are the stream's own


def test_without_adaptation_a_replay_is_the_first_answer_too(api: Api) -> None:
    stream = api.make()
    first = keyed(api, stream, "k", adapt=False)
    stepped(api, stream, 5)
    again = keyed(api, stream, "k", adapt=False)
    assert again.content == first.content
    assert again.headers["Idempotent-Replay"] == "true"


def test_a_stream_made_anew_knows_no_old_keys(api: Api) -> None:
    stream = api.make()
    keyed(api, stream, "k")
    api.delete(f"/v1/streams/{stream}")
    api.make(stream)
    assert "Idempotent-Replay" not in keyed(api, stream, "k", seed=1).headers


def test_duplicates_at_once_adapt_once(serve: Callable[..., Live], api: Api) -> None:
    stream = api.make()
    with Api(serve().url) as other:
        answers = together(*[lambda client=client: keyed(client, stream, "k") for client in [api, other] * 8])
        assert [answer.status_code for answer in answers] == [200] * 16
        assert len({answer.content for answer in answers}) == 1
        assert sum("Idempotent-Replay" not in answer.headers for answer in answers) == 1
        assert api.show(stream)["step"] == 1


# Order, batches, limits


def test_requests_of_a_stream_keep_their_order(serve: Callable[..., Live]) -> None:
    """The first one takes long to decode; those after it are decoded meanwhile, and wait."""
    server = serve()
    with Api(server.url) as api:
        stream = api.make()
        connections = [connected(server) for _ in range(6)]
        for connection, side in zip(connections, (5000, 8, 8, 8, 8, 8), strict=True):
            send(connection, stream, flat_png(side))
        answers = [json.load(connection.getresponse()) for connection in connections]
        assert [answer["step"] for answer in answers] == [1, 2, 3, 4, 5, 6]
        for connection in connections:
            connection.close()


def flat_png(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "olive").save(file, "PNG")
    return file.getvalue()


def connected(server: Live) -> HTTPConnection:
    """A connection that the server has accepted."""
    connection = HTTPConnection(httpx.URL(server.url).netloc.decode(), timeout=20)
    connection.request("GET", "/healthz")
    connection.getresponse().read()
    return connection


def send(connection: HTTPConnection, stream: str, png: bytes) -> None:
    """Send a predict request and do not wait for its answer."""
    head = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    connection.request("POST", f"/v1/streams/{stream}/predict", head + png + b"\r\n--b--\r\n", kind)


def test_requests_of_a_stream_at_once_are_as_one_after_another(api: Api) -> None:
    stream, alone = api.make(), api.make()
    answers = together(*[lambda seed=seed: api.step(stream, tensors(1, seed)).json() for seed in range(12)])
    in_order = sorted(range(12), key=lambda seed: answers[seed]["step"])
    assert [answers[seed]["step"] for seed in in_order] == list(range(1, 13))
    assert [answers[seed]["version"] for seed in in_order] == list(range(2, 14))
    for seed in in_order:
        same_answer(api.step(alone, tensors(1, seed)).json(), answers[seed])
    same_state(api.state(alone), api.state(stream))


def same_answer(one: dict[str, Any], other: dict[str, Any]) -> None:
    for image, twin in zip(one["predictions"], other["predictions"], strict=True):
        mine, theirs = (
            {each["class"]: each["probability"] for each in each_image["top"]} for each_image in (image, twin)
        )
        assert mine == pytest.approx(theirs, abs=1e-4)


def same_state(one: bytes, other: bytes) -> None:
    ours, theirs = decode(one), decode(other)
    assert ours.step == theirs.step
    for name, value in ours.tensors.items():
        np.testing.assert_allclose(value, theirs.tensors[name], rtol=1e-4, atol=1e-4)


def test_streams_share_forward_passes_and_are_as_if_they_did_not(serve: Callable[..., Live], api: Api) -> None:
    """A batch waits for eight images or a minute: that seven requests wait and eight do not proves that they share."""
    recipes = ["ema", "alpha_bn", "ema", "bn1", "source", "ema", "n_prior", "ema"]
    with Api(serve(max_batch=8, max_wait_ms=LONG_MS).url) as sharing, ThreadPoolExecutor(8) as threads:
        streams = [sharing.make(recipe=recipe) for recipe in recipes]
        for _ in range(2):
            calls = [
                threads.submit(sharing.logits, each, tensors(1, n), adapt=True) for n, each in enumerate(streams[:7])
            ]
            assert sharing.get("/readyz").status_code == 200
            assert not [call.result() for call in calls if call.done()]
            last = sharing.logits(streams[7], tensors(1, 7), adapt=True)
            logits = [*(call.result() for call in calls), last]
        states = [sharing.state(stream) for stream in streams]
    for n, recipe in enumerate(recipes):
        alone = api.make(recipe=recipe)
        for _ in range(2):
            expected = api.logits(alone, tensors(1, n), adapt=True)
        np.testing.assert_allclose(logits[n], expected, atol=1e-4)
        same_state(states[n], api.state(alone))


def test_a_bad_request_does_not_fail_its_neighbours_in_the_batch(serve: Callable[..., Live], api: Api) -> None:
    with Api(serve(max_batch=3, max_wait_ms=LONG_MS).url) as sharing:
        good, bad, fair = (sharing.make() for _ in range(3))
        answers = together(
            lambda: sharing.step(good, tensors(1, 1)),
            lambda: sharing.step(bad, np.full_like(tensors(), 1e38)),
            lambda: sharing.step(fair, tensors(1, 2)),
        )
        assert [answer.status_code for answer in answers] == [200, 422, 200]
        assert [sharing.show(stream)["step"] for stream in (good, bad, fair)] == [1, 0, 1]
        alone = stepped(api, api.make(), 1)
        same_state(sharing.state(good), api.state(alone))


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


# Events


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


# Two servers on one Redis


@pytest.fixture
def pair(serve: Callable[..., Live]) -> Iterator[tuple[Api, Api]]:
    with Api(serve().url) as one, Api(serve().url) as other:
        yield one, other


def test_no_server_uses_a_state_that_another_has_moved(pair: tuple[Api, Api], api: Api) -> None:
    one, other = pair
    stream, alone = one.make(), api.make()
    for seed, server in enumerate((one, one, other, one, other, other, one)):
        answer = server.step(stream, tensors(1, seed)).json()
        same_answer(answer, api.step(alone, tensors(1, seed)).json())
        assert answer["step"] == seed + 1
    other.post(f"/v1/streams/{stream}/reset")
    np.testing.assert_array_equal(one.logits(stream, tensors(1, 9)), other.logits(api.make(), tensors(1, 9)))
    one.delete(f"/v1/streams/{stream}")
    check_problem(other.step(stream, tensors()), 404)


def test_two_servers_at_once_lose_no_update(pair: tuple[Api, Api], api: Api) -> None:
    stream, alone = api.make(), api.make()
    answers = together(*[lambda seed=seed: pair[seed % 2].step(stream, tensors(1, seed)) for seed in range(16)])
    # A server that is overtaken again and again may give up, and then has changed nothing.
    assert {answer.status_code for answer in answers} <= {200, 409}
    seeds = {answer.json()["step"]: seed for seed, answer in enumerate(answers) if answer.status_code == 200}
    assert len(seeds) == sum(answer.status_code == 200 for answer in answers)
    assert sorted(seeds) == list(range(1, len(seeds) + 1))
    assert (api.show(stream)["step"], api.show(stream)["version"]) == (len(seeds), len(seeds) + 1)
    stepped(api, alone, *(seeds[step] for step in sorted(seeds)))
    same_state(api.state(alone), api.state(stream))


def test_a_replay_comes_from_any_server(pair: tuple[Api, Api]) -> None:
    stream = pair[0].make()
    first, again = (keyed(server, stream, "k") for server in pair)
    assert again.content == first.content
    assert again.headers["Idempotent-Replay"] == "true"


# Damage


@pytest.mark.parametrize("damage", ["rubbish", "cut short", "another model's", "another recipe's"])
def test_a_damaged_state_is_said_and_a_reset_mends_it(redis_url: str, api: Api, damage: str) -> None:
    stream, sound = stepped(api, api.make(), 1), api.make()
    state = {
        "rubbish": b"rubbish",
        "cut short": api.state(stream)[:-1],
        "another model's": api.state(api.make(model="other")),
        "another recipe's": api.state(api.make(recipe="alpha_bn")),
    }[damage]
    with Redis.from_url(redis_url) as redis:
        redis.hset(KEYS.stream(stream), mapping={"state": state, "version": 50})
    for answer in (api.step(stream, tensors()), api.step(stream, tensors(), adapt=False)):
        check_problem(answer, 409, stream, "damaged", "Reset it")
    check_problem(api.post(f"/v1/streams/{stream}/snapshots"), 409, "damaged")
    assert api.step(sound, tensors()).status_code == 200
    assert api.post(f"/v1/streams/{stream}/reset").json()["version"] == 51
    np.testing.assert_array_equal(api.logits(stream, tensors(1, 9)), api.logits(api.make(), tensors(1, 9)))
