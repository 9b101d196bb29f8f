"""What was learnt is part of a stream's state."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from labelling import (
    IMAGES,
    LEARN,
    REPLAY,
    label_images,
    learnt,
    photo,
    photos,
    post,
    post_images,
    predict,
    same,
    samples,
    show,
)
from redis import Redis
from servers import Api, Live, check_problem, new_id, tensors

from normstream.service.storage.blob_shelf import Blob
from normstream.service.storage.keyspace import Keyspace

KEYS = Keyspace("normstream")


@pytest.fixture(params=["plain", "adab2n", "all"])
def recipe(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Recipes whose streams remember what others have not: an optimiser, tasks, a network of their own, logits."""
    more: dict[str, Any] = {
        "plain": {},
        "adab2n": {"norm": {"name": "adab2n"}, "learns": "affine", "descent": {"momentum": 0.9}},
        "all": {
            "learns": "all",
            "method": {"name": "derpp"},
            "descent": {"name": "adam"},
            "replay": {**REPLAY, "policy": "ring"},
        },
    }[request.param]
    return {"learn": {**IMAGES, **more}}


def taught(api: Api, recipe: dict[str, Any]) -> str:
    stream = api.make(recipe=recipe)
    label_images(api, stream, photos(*range(5)), ["owl", "elk", "0", "owl", "ant"])
    return stream


def test_all_that_a_lesson_goes_by_is_part_of_the_state(api: Api, recipe: dict[str, Any]) -> None:
    remembered = {
        "affine": {"weight", "bias", "logits"},
        "adab2n": {"task_weight", "run_mean", "run_var", "velocity"},
        "all": {"first", "second", "count", "logits", "places", "seen"},
    }
    learning = recipe["learn"]
    name = "adab2n" if "norm" in learning else learning.get("learns", "affine")
    assert remembered[name] <= {each.rpartition(".")[2] for each in learnt(api, taught(api, recipe))}


def test_what_was_learnt_is_snapshot_and_restored(api: Api, serve: Callable[..., Live], recipe: dict[str, Any]) -> None:
    stream = taught(api, recipe)
    before, logits = learnt(api, stream), api.logits(stream, tensors(2))
    snapshot = api.post(f"/v1/streams/{stream}/snapshots").json()
    label_images(api, stream, photos(6), ["bee"])
    assert not same(learnt(api, stream), before)
    api.post(f"/v1/streams/{stream}/restore", json={"snapshot": snapshot["id"]})
    assert same(learnt(api, stream), before)
    np.testing.assert_array_equal(api.logits(stream, tensors(2)), logits)
    shown = show(api, stream)
    assert shown["classes"][-3:] == ["owl", "elk", "ant"]
    assert shown["scores"]["labelled"] == 6  # labels are not forgotten with what they taught
    # It goes on from there as if nothing had been in between, on another server too.
    data = api.get(f"/v1/snapshots/{snapshot['id']}").content
    with Api(serve().url) as elsewhere:
        copy, headers = new_id("snap"), {"Content-Type": "application/octet-stream"}
        assert elsewhere.put(f"/v1/snapshots/{copy}", content=data, headers=headers).status_code == 201
        other = elsewhere.make(recipe=recipe)
        assert elsewhere.post(f"/v1/streams/{other}/restore", json={"snapshot": copy}).status_code == 200
        for client, each in ((api, stream), (elsewhere, other)):
            label_images(client, each, photos(7, 8), ["owl", "bee"])
        assert same(learnt(api, stream), learnt(elsewhere, other))


def test_a_fork_has_learnt_the_same_and_was_never_labelled(api: Api, recipe: dict[str, Any]) -> None:
    stream = taught(api, recipe)
    fork = api.post(f"/v1/streams/{stream}/fork").json()["id"]
    assert same(learnt(api, fork), learnt(api, stream))
    assert show(api, fork)["scores"]["labelled"] == 0
    label_images(api, fork, photos(6), ["bee"])
    assert "bee" not in show(api, stream)["classes"]
    label_images(api, stream, photos(6), ["bee"])
    assert same(learnt(api, fork), learnt(api, stream))  # all that a lesson goes by is the fork's own too


def test_a_reset_forgets_everything(api: Api, recipe: dict[str, Any]) -> None:
    stream = taught(api, recipe)
    new = api.make(recipe=recipe)
    (sample,) = samples(api, stream, photos(0))
    assert api.post(f"/v1/streams/{stream}/reset").status_code == 200
    assert api.state(stream) == api.state(new)
    assert show(api, stream) == {**show(api, new), "stream": stream}
    check_problem(post(api, stream, [{"sample": sample, "label": "owl"}]), 422, sample)


def change_a_byte(redis: Redis, key: str, last: int, piece: bytes) -> None:
    redis.hset(key, last, piece[:-1] + b"?")


def lose_a_piece(redis: Redis, key: str, last: int, _: bytes) -> None:
    redis.hdel(key, last)


@pytest.mark.parametrize("harm", [change_a_byte, lose_a_piece])
def test_a_damaged_memory_is_told_and_a_reset_mends_it(api: Api, redis_url: str, harm: Callable[..., None]) -> None:
    stream = taught(api, LEARN)
    fork = api.post(f"/v1/streams/{stream}/fork").json()["id"]  # which no server has at hand
    with Redis.from_url(redis_url) as redis:
        key = Blob(redis.hget(KEYS.stream(fork), "learnt_tag").decode()).key(KEYS.stream(fork))
        last = redis.hlen(key) - 1
        harm(redis, key, last, redis.hget(key, last))
    answer = api.post(f"/v1/streams/{fork}/predict", files=[("images", photo(0))])
    check_problem(answer, 409, fork, "damaged", "Reset")
    check_problem(post_images(api, fork, photos(0), ["owl"]), 409, "damaged")
    assert api.post(f"/v1/streams/{fork}/reset").status_code == 200
    assert predict(api, fork, photos(0))
