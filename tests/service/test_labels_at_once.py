"""Labels beside predictions, other requests with labels, and other servers."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from labelling import (
    IMAGES,
    LEARN,
    NEW,
    label,
    label_images,
    learnt,
    photos,
    post_images,
    predict,
    same,
    samples,
    show,
)
from servers import Api, Live, tensors, until

from normstream.adaptation import decode


def versions_beside(api: Api, stream: str, work: Callable[[], Any]) -> tuple[Any, list[int]]:
    """What the work answers, and the versions of predictions made meanwhile."""
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(work()))
    thread.start()
    versions = []
    while thread.is_alive():
        answer = api.step(stream, tensors(1))
        assert answer.status_code == 200, answer.text
        versions.append(answer.json()["version"])
    thread.join()
    return done[0], versions


def test_predictions_have_their_turns_between_lessons(api: Api, server: Live) -> None:
    stream = api.make(recipe={"learn": {**IMAGES, "batch": 1}})
    with Api(server.url) as other:
        answer, versions = versions_beside(
            api, stream, lambda: label_images(other, stream, photos(*range(8)), ["owl", "elk"] * 4)
        )
    assert answer["learning"]["lessons"] == 8
    assert api.show(stream)["version"] == 1 + 8 + len(versions)
    assert len(set(versions)) == len(versions)
    assert sum(version < answer["version"] for version in versions) >= 3


def test_a_prediction_waits_for_one_lesson_however_many_requests_bring_labels(api: Api, server: Live) -> None:
    stream = api.make(recipe={"learn": {**IMAGES, "batch": 1}})

    def send(first: int) -> None:
        with Api(server.url) as client:
            label_images(client, stream, photos(*range(first, first + 6)), ["owl", "elk"] * 3)

    def send_all() -> None:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(send, (0, 6, 12)))

    _, versions = versions_beside(api, stream, send_all)
    version = api.show(stream)["version"]
    assert version == 1 + 18 + len(versions)
    # Behind three lessons each, there would have been time for six.
    assert len(versions) >= 12


def test_two_requests_with_the_same_labels_count_once(api: Api, server: Live) -> None:
    stream = api.make(recipe={"learn": {**IMAGES, "batch": 1}})
    ids = samples(api, stream, photos(*range(6)))
    answers: list[dict[str, Any]] = []

    def send() -> None:
        with Api(server.url) as client:
            answers.append(label(client, stream, dict.fromkeys(ids, "owl")))

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(each["labelled"] for each in answers) == 6
    assert sum(each["duplicates"] for each in answers) == 12
    assert show(api, stream)["learning"]["lessons"] == 6


def test_servers_share_what_a_stream_learns(api: Api, serve: Callable[..., Live]) -> None:
    stream = api.make(recipe=NEW)
    label_images(api, stream, photos(0, 1), ["owl", "elk"])
    with Api(serve().url) as elsewhere:
        (sample,) = samples(elsewhere, stream, photos(0))
        label(api, stream, {sample: "ant"})
        (top,) = predict(elsewhere, stream, photos(0))
        assert {each["label"] for each in top["top"]} == {"owl", "elk", "ant"}
        np.testing.assert_array_equal(elsewhere.logits(stream, tensors(2)), api.logits(stream, tensors(2)))


def test_nothing_needs_to_be_at_hand(api: Api, serve: Callable[..., Live]) -> None:
    with Api(serve(cache_bytes=0).url) as forgetful:
        streams = [client.make(recipe=LEARN) for client in (api, forgetful)]
        for client, stream in zip((api, forgetful), streams, strict=True):
            for seed in range(3):
                ids = samples(client, stream, photos(seed))
                label(client, stream, dict.fromkeys(ids, "owl"))
    assert same(learnt(api, streams[0]), learnt(api, streams[1]))


def test_a_lesson_and_another_server_s_steps_lose_nothing(api: Api, serve: Callable[..., Live]) -> None:
    stream = api.make(recipe={"norm": {"name": "ema"}, "learn": {**IMAGES, "learns": "head", "norm": None, "batch": 4}})
    with Api(serve().url) as elsewhere:
        steps = 0
        done = threading.Event()
        answers: list[Any] = []

        def send() -> None:
            answers.append(post_images(elsewhere, stream, photos(*range(8)), ["owl", "elk"] * 4))
            done.set()

        thread = threading.Thread(target=send)
        thread.start()
        while not done.is_set():
            assert api.step(stream, tensors(1)).status_code == 200
            steps += 1
            time.sleep(0.1)
        thread.join()
    (answer,) = answers
    assert answer.status_code == 200, answer.text
    state = decode(api.state(stream))
    assert state.step == steps
    assert state.learnt is not None
    assert state.learnt.lessons == 2
    assert api.show(stream)["version"] == 1 + steps + 2


def test_a_request_whose_client_goes_away_leaves_whole_lessons(api: Api, server: Live) -> None:
    stream = api.make(recipe={"learn": {**IMAGES, "batch": 1}})
    with Api(server.url, timeout=0.3) as hasty, pytest.raises(httpx.ReadTimeout):
        label_images(hasty, stream, photos(*range(8)), ["owl"] * 8)

    def rested() -> bool:
        version = api.show(stream)["version"]
        time.sleep(0.3)
        return api.show(stream)["version"] == version

    until(rested)
    shown = show(api, stream)
    assert shown["learning"]["lessons"] == shown["scores"]["labelled"] == api.show(stream)["version"] - 1
