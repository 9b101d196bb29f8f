"""The order of requests and the batches that they share: as if each came alone."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from servers import Api, Live, tensors
from streams import LONG_MS, connected, flat_png, same_answer, same_state, send, stepped, together


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


def test_requests_of_a_stream_at_once_are_as_one_after_another(api: Api) -> None:
    stream, alone = api.make(), api.make()
    answers = together(*[lambda seed=seed: api.step(stream, tensors(1, seed)).json() for seed in range(12)])
    in_order = sorted(range(12), key=lambda seed: answers[seed]["step"])
    assert [answers[seed]["step"] for seed in in_order] == list(range(1, 13))
    assert [answers[seed]["version"] for seed in in_order] == list(range(2, 14))
    for seed in in_order:
        same_answer(api.step(alone, tensors(1, seed)).json(), answers[seed])
    same_state(api.state(alone), api.state(stream))


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
