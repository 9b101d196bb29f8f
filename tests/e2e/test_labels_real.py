"""Labels and the real process: whenever it dies, a stream has had whole lessons and no part of one."""

import io
import json
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from redis import Redis
from servers import Api, Process

from normstream.adaptation import Learnt, Recipe, decode_learnt, initial_state, learn, load_model, pixels_of
from normstream.adaptation.models import ModelSpec
from normstream.service.images import Images, prepare
from normstream.service.scores import Scores
from normstream.service.storage.blob_shelf import Blob
from normstream.service.storage.keyspace import Keyspace

KEYS = Keyspace("normstream")
BATCH, LESSONS = 12, 4
KILLS = 2
RECIPE = {
    "norm": {"name": "ema"},
    "learn": {
        "head": "new",
        "learns": "affine",
        "norm": {"name": "adab2n"},
        "descent": {"momentum": 0.9},
        "batch": BATCH,
        "replay": {"keep": "images", "encoding": "png", "capacity": 60, "batch": BATCH},
        "unlabelled": "images",
    },
}


def photo(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


FILES = [photo(seed) for seed in range(BATCH * LESSONS)]
NAMES = [("owl", "elk", "ant")[seed % 3] for seed in range(BATCH * LESSONS)]


def lessons_of_the_library(option: str) -> list[Learnt]:
    """What a stream has learnt after 0, 1, ... lessons."""
    hosted = load_model(ModelSpec.parse(option))
    state = initial_state(hosted, Recipe.parse(RECIPE))
    pixels = pixels_of(hosted, prepare(Images(tuple(FILES)), hosted.preprocessing, 10**9))
    assert state.learnt is not None
    after = [state.learnt]
    for start in range(0, len(FILES), BATCH):
        state = learn(hosted, state, pixels[start : start + BATCH], NAMES[start : start + BATCH]).state
        assert state.learnt is not None
        after.append(state.learnt)
    return after


def same(first: Learnt, second: Learnt) -> bool:
    tensors = second.tensors
    return first.tensors.keys() == tensors.keys() and all(
        bool((value == tensors[name]).all()) for name, value in first.tensors.items()
    )


def send(api: Api, stream: str) -> httpx.Response:
    """All labels in one request, which is safe to repeat."""
    return api.post(
        f"/v1/streams/{stream}/labels",
        files=[("images", file) for file in FILES],
        data={"labels": json.dumps(NAMES)},
        headers={"Idempotency-Key": stream},
        timeout=60,
    )


def kept_in(redis: Redis, stream: str) -> dict[str, Any]:
    """What the store has of a stream: what was learnt, labels counted, images marked as labelled."""
    tag, scores, version = redis.hmget(KEYS.stream(stream), "learnt_tag", "scores", "version")
    pieces = redis.hgetall(Blob(tag.decode()).key(KEYS.stream(stream)))
    return {
        "learnt": decode_learnt(b"".join(pieces[place].removeprefix(tag) for place in sorted(pieces, key=int))),
        "labelled": Scores.unpack(scores or b"").total.labelled,
        "marks": redis.hlen(KEYS.unlabelled(stream)[0]),
        "events": redis.xlen(KEYS.events(stream)),
        "version": int(version),
    }


def check_whole(kept: dict[str, Any], after: list[Learnt]) -> int:
    """Everything that the store has is of one number of lessons, which is answered."""
    lessons = kept["learnt"].lessons
    assert same(kept["learnt"], after[lessons])
    assert kept["labelled"] == kept["marks"] == BATCH * lessons
    assert kept["events"] == lessons
    assert kept["version"] == 1 + lessons
    return lessons


def test_a_killed_server_leaves_whole_lessons(start: Callable[..., Process], folder: Path, tiny_option: str) -> None:
    after = lessons_of_the_library(tiny_option)
    settings = {"max_images": len(FILES), "data": folder / "data"}
    server = start(**settings).ready()
    # How long the request takes when nobody disturbs it.
    with server.api() as api:
        stream = api.make(recipe=RECIPE)
        began = time.monotonic()
        answer = send(api, stream)
        long_s = time.monotonic() - began
    assert answer.status_code == 200, answer.text
    told = answer.json()["learning"]
    assert [step["samples"] for step in told["steps"]] == [BATCH] * LESSONS
    found, rng = [], random.Random(7)
    for _ in range(KILLS):
        with server.api() as api:
            stream = api.make(recipe=RECIPE)
        killed = threading.Timer(rng.uniform(0.05, 0.9) * long_s, server.kill)
        killed.start()
        with suppress(httpx.TransportError), server.api() as api:
            send(api, stream)
        killed.join()
        server = start(**settings).ready()
        with Redis(unix_socket_path=str(folder / "data" / "redis" / "redis.sock")) as redis:
            found.append(check_whole(kept_in(redis, stream), after))
            # The same request goes on where it stopped.
            with server.api() as api:
                rest = send(api, stream).json()
            assert (rest["labelled"], rest["duplicates"]) == (BATCH * (LESSONS - found[-1]), BATCH * found[-1])
            assert check_whole(kept_in(redis, stream), after) == LESSONS
    assert min(found) < LESSONS  # or none was killed in time
