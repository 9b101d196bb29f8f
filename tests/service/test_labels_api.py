"""What the service promises of labels, over real connections."""

import json
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from labelling import (
    FEATURES,
    IMAGES,
    LEARN,
    NEW,
    REPLAY,
    base64_of,
    label,
    label_images,
    photo,
    photos,
    post,
    post_images,
    predict,
    samples,
    show,
)
from redis import Redis
from servers import NPY, Api, Live, check_problem, new_id, npy, tensors, until

from normstream.adaptation import ModelSpec, decode, initial_state, learn, load_model, pixels_of
from normstream.service.images import Images, prepare
from normstream.service.storage.blob_shelf import Blob
from normstream.service.storage.keyspace import Keyspace

KEYS = Keyspace("normstream")


def learnt(api: Api, stream: str) -> dict[str, torch.Tensor]:
    """The tensors of what a stream has learnt."""
    found = decode(api.state(stream)).learnt
    assert found is not None
    return found.tensors


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


# Predictions wait for their labels


def test_predictions_have_ids_by_which_labels_find_them(api: Api) -> None:
    stream = api.make()
    first, second = samples(api, stream, photos(0, 1)), samples(api, stream, photos(0), adapt=False)
    assert len({*first, *second}) == 3
    for index, sample in enumerate(first):
        assert re.fullmatch(rf"[0-9a-f]{{16}}-{index}", sample)
    headers = {"Content-Type": NPY, "Accept": NPY}
    answer = api.post(f"/v1/streams/{stream}/predict", content=npy(tensors(2)), headers=headers)
    third = [f"{answer.headers['Normstream-Samples']}-{index}" for index in range(2)]
    assert label(api, stream, dict.fromkeys([*first, *second, *third], "3"))["labelled"] == 5


def test_a_repeated_prediction_keeps_its_ids(api: Api) -> None:
    stream, headers = api.make(), {"Content-Type": NPY, "Idempotency-Key": "once"}
    answers = [
        api.post(f"/v1/streams/{stream}/predict", content=npy(tensors(2)), headers=headers, params=query)
        for query in ({"adapt": True}, {"adapt": True})
    ]
    assert answers[0].json() == answers[1].json()
    assert label(api, stream, {each["sample"]: "0" for each in answers[0].json()["predictions"]})["labelled"] == 2


def test_labels_say_how_often_a_stream_was_right(api: Api) -> None:
    stream = api.make()
    before, state = api.show(stream), api.state(stream)
    predictions = predict(api, stream, photos(*range(6)), adapt=False, output="probs")
    probabilities = np.array([each["values"] for each in predictions])
    answers, sure = probabilities.argmax(1), probabilities.max(1)
    labels = [int(answer) if image % 3 else (int(answer) + 1) % 7 for image, answer in enumerate(answers)]
    answer = post(
        api, stream, [{"sample": each["sample"], "class": k} for each, k in zip(predictions, labels, strict=True)]
    ).json()
    right = answers == np.array(labels)
    scores = answer["scores"]
    assert (scores["labelled"], scores["scored"], scores["correct"]) == (6, 6, 4)
    assert scores["accuracy"] == scores["window"]["accuracy"] == pytest.approx(4 / 6)
    assert scores["window"]["scored"] == 6
    bins = np.floor(sure * 15).astype(int)
    gaps = [abs((right[bins == each].astype(float) - sure[bins == each]).sum()) for each in set(bins)]
    assert scores["window"]["ece"] == pytest.approx(sum(gaps) / 6, abs=1e-6)
    assert [each["label"] for each in scores["classes"]] == [str(each) for each in dict.fromkeys(labels)]
    assert sum(each["correct"] for each in scores["classes"]) == 4
    assert answer["learning"] is None
    assert show(api, stream) == {
        "stream": stream,
        "scores": scores,
        "classes": [str(each) for each in range(7)],
        "learning": None,
    }
    # A stream without `learn` only counts.
    assert api.state(stream) == state
    assert (answer["step"], answer["version"]) == (before["step"], before["version"] + 1)


def test_an_image_that_comes_with_its_label_is_scored_by_what_would_be_predicted(api: Api) -> None:
    stream = api.make()
    (top,) = predict(api, stream, photos(3), adapt=False)
    right, wrong = top["top"][0]["class"], top["top"][1]["class"]
    images = [{"image": base64_of(photo(3)), "class": each} for each in (right, wrong)]
    scores = post(api, stream, images).json()["scores"]
    assert (scores["scored"], scores["correct"]) == (2, 1)
    assert api.show(stream)["step"] == 0


# Learning


def test_a_lesson_is_the_library_s_to_the_bit(api: Api, tiny_models: tuple[ModelSpec, ModelSpec]) -> None:
    hosted = load_model(tiny_models[0])
    names = ["3", "owl", "3", "elk", "owl", "0"]
    files = photos(*range(6))
    stream = api.make(recipe=LEARN)
    answer = label_images(api, stream, files, names)
    state = initial_state(hosted, decode(api.state(stream)).recipe)
    pixels = pixels_of(hosted, prepare(Images(tuple(files)), hosted.preprocessing, 10**6))
    outcomes = []
    for part in (slice(0, 4), slice(4, 6)):
        outcomes.append(learn(hosted, state, pixels[part], names[part]))
        state = outcomes[-1].state
    assert state.learnt is not None
    assert same(learnt(api, stream), state.learnt.tensors)
    told = answer["learning"]
    assert [step["loss"] for step in told["steps"]] == [each.report.loss for each in outcomes]
    assert [step["samples"] for step in told["steps"]] == [4, 2]
    assert [step["replayed"] for step in told["steps"]] == [each.report.replayed for each in outcomes]
    assert (told["lessons"], told["classes"], told["new_classes"]) == (2, 9, ["owl", "elk"])
    assert (told["kept"], told["kept_bytes"]) == (state.learnt.kept, state.learnt.kept_bytes)
    assert (answer["labelled"], answer["duplicates"], answer["unlearnt"]) == (6, 0, 0)
    shown = show(api, stream)
    assert shown["classes"] == [*map(str, range(7)), "owl", "elk"]
    assert shown["learning"] == {name: told[name] for name in ("lessons", "classes", "kept", "kept_bytes")}


def test_a_label_that_comes_late_teaches_what_one_with_the_image_does(api: Api) -> None:
    late, at_once = api.make(recipe=LEARN), api.make(recipe=LEARN)
    ids = samples(api, late, photos(0, 1, 2), adapt=False)
    label(api, late, dict(zip(ids, ["owl", "2", "owl"], strict=True)))
    label_images(api, at_once, photos(0, 1, 2), ["owl", "2", "owl"])
    assert same(learnt(api, late), learnt(api, at_once))


def test_features_in_place_of_images_teach_the_head(api: Api, redis_url: str) -> None:
    stream = api.make(recipe={"learn": FEATURES})
    ids = samples(api, stream, photos(0, 1), adapt=False)
    with Redis.from_url(redis_url) as redis:
        kept = sum(map(len, redis.hvals(KEYS.unlabelled(stream)[0])))
    width = learnt(api, stream)["head.weight"].shape[1]
    assert 2 * 4 * width <= kept < 2 * 4 * width + 100  # numbers of the head's input, and no picture
    mixed = [
        {"sample": ids[0], "label": "owl"},
        {"image": base64_of(photo(1)), "label": "2"},
        {"sample": ids[1], "label": "2"},
    ]
    told = post(api, stream, mixed).json()["learning"]
    assert [step["samples"] for step in told["steps"]] == [3]
    assert told["kept_bytes"] == 3 * 4 * width
    rows = learnt(api, stream)["replay.data"].view(torch.float32).view(3, width)
    torch.testing.assert_close(rows[1], rows[2])  # the image and its prediction


def test_a_stream_may_begin_without_a_class(api: Api) -> None:
    stream = api.make(recipe=NEW)
    path = f"/v1/streams/{stream}/predict"
    check_problem(api.post(path, files=[("images", photo(0))]), 409, stream, "no class yet", "labels first")
    assert api.show(stream)["version"] == 1
    assert show(api, stream)["classes"] == []
    answer = label_images(api, stream, photos(*range(6)), ["owl", "elk", "owl", "elk", "owl", "ant"])
    # Of the first lesson's images none could be answered; those of the second met what the first had taught.
    assert (answer["scores"]["labelled"], answer["scores"]["scored"]) == (6, 2)
    assert answer["learning"]["new_classes"] == show(api, stream)["classes"] == ["owl", "elk", "ant"]
    (top,) = predict(api, stream, photos(0), adapt=False)
    assert {each["label"]: each["class"] for each in top["top"]} == {"owl": 0, "elk": 1, "ant": 2}


def test_it_learns(api: Api) -> None:
    stream = api.make(recipe={"learn": {**NEW["learn"], "norm": None, "learns": "head", "descent": {"lr": 3}}})
    for seed in range(0, 24, 4):
        label_images(api, stream, [photo(seed + n, dark=n % 2) for n in range(4)], ["day", "night"] * 2)
    predictions = predict(api, stream, [photo(90), photo(91, dark=True)], adapt=False)
    assert [each["top"][0]["label"] for each in predictions] == ["day", "night"]
    assert show(api, stream)["scores"]["window"]["accuracy"] > 0.6


def test_what_was_not_kept_is_counted_and_not_learnt_from(api: Api) -> None:
    stream = api.make(recipe={"learn": {**IMAGES, "unlabelled": "nothing"}})
    (sample,) = samples(api, stream, photos(0), adapt=False)
    state = api.state(stream)
    answer = label(api, stream, {sample: "owl"})
    assert (answer["labelled"], answer["unlearnt"]) == (1, 1)
    assert answer["scores"]["labelled"] == 1
    assert (answer["learning"]["steps"], answer["learning"]["lessons"]) == ([], 0)
    assert api.state(stream) == state


def test_labels_may_be_counted_alone(api: Api) -> None:
    stream = api.make(recipe=LEARN)
    (sample,) = samples(api, stream, photos(0), adapt=False)
    state = api.state(stream)
    answer = label(api, stream, {sample: "owl"}, learn=False)
    assert (answer["labelled"], answer["unlearnt"], answer["learning"]["lessons"]) == (1, 0, 0)
    assert api.state(stream) == state
    assert "owl" not in show(api, stream)["classes"]


def test_adapting_and_learning_go_together(api: Api) -> None:
    recipe = {"norm": {"name": "ema"}, "learn": {**IMAGES, "learns": "head", "norm": None}}
    both, neighbour, alone = api.make(recipe=recipe), api.make(), api.make()
    for seed in range(3):
        ids = samples(api, both, photos(seed, seed + 1))
        predict(api, neighbour, photos(seed))
        label(api, both, dict(zip(ids, ["owl", "1"], strict=True)))
    for seed in range(3):
        predict(api, alone, photos(seed))
    state = decode(api.state(both))
    assert (state.step, state.learnt.lessons if state.learnt else None) == (3, 3)
    assert not torch.equal(state.tensors["norm.mean"], decode(api.state(api.make(recipe=recipe))).tensors["norm.mean"])
    assert same(decode(api.state(neighbour)).tensors, decode(api.state(alone)).tensors)


def test_predictions_leave_what_was_learnt_where_it_is(api: Api, redis_url: str) -> None:
    stream = api.make(recipe=LEARN)
    label_images(api, stream, photos(0), ["owl"])
    with Redis.from_url(redis_url) as redis:
        before = redis.hget(KEYS.stream(stream), "learnt_tag")
        predict(api, stream, photos(0))
        assert redis.hget(KEYS.stream(stream), "learnt_tag") == before
        label_images(api, stream, photos(1), ["owl"])
        assert redis.hget(KEYS.stream(stream), "learnt_tag") != before


def test_lessons_are_told_to_those_who_watch(api: Api) -> None:
    stream = api.make(recipe=LEARN)
    (sample,) = samples(api, stream, photos(0))
    told = {}
    with api.stream("GET", f"/v1/streams/{stream}/events", headers={"Last-Event-ID": "0-1"}) as events:
        label(api, stream, {sample: "owl"})
        for line in events.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            if line.startswith("data: ") and kind == "learnt":
                told = json.loads(line.removeprefix("data: "))
                break
    assert (told["step"], told["version"], told["samples"], told["new_classes"]) == (1, 3, 1, ["owl"])
    assert told.keys() >= {"loss", "penalty", "replayed", "discarded", "lessons", "classes", "kept", "kept_bytes"}


def test_a_lesson_without_finite_numbers_is_discarded_and_told(api: Api) -> None:
    stream = api.make(recipe={"learn": {**NEW["learn"], "descent": {"lr": 10, "momentum": 0.9}, "batch": 1}})
    answers = [label_images(api, stream, photos(*range(8)), ["owl", "elk"] * 4) for _ in range(12)]
    steps = [step for answer in answers for step in answer["learning"]["steps"]]
    kept = sum(step["discarded"] is None for step in steps)
    assert 0 < kept < len(steps)
    assert all("finite" in step["discarded"] for step in steps if step["discarded"] is not None)
    assert answers[-1]["learning"]["lessons"] == kept
    assert show(api, stream)["scores"]["labelled"] == len(steps)


# Once and no more


def test_a_label_counts_once(api: Api) -> None:
    stream = api.make(recipe=LEARN)
    ids = samples(api, stream, photos(0, 1), adapt=False)
    first = label(api, stream, {ids[0]: "owl"})
    again = label(api, stream, {ids[0]: "owl", ids[1]: "elk"})
    assert (again["labelled"], again["duplicates"]) == (1, 1)
    assert again["learning"]["lessons"] == first["learning"]["lessons"] + 1
    version = api.show(stream)["version"]
    assert label(api, stream, {ids[0]: "owl"})["labelled"] == 0
    assert api.show(stream)["version"] == version


def test_one_request_may_name_a_prediction_twice(api: Api) -> None:
    stream = api.make()
    (sample,) = samples(api, stream, photos(0))
    answer = post(api, stream, [{"sample": sample, "label": "3"}, {"sample": sample, "class": 3}]).json()
    assert (answer["labelled"], answer["duplicates"]) == (1, 1)


def test_images_count_once_under_an_idempotency_key(api: Api) -> None:
    stream = api.make(recipe=LEARN)
    for _ in range(2):
        label_images(api, stream, photos(0), ["owl"])
    assert show(api, stream)["scores"]["labelled"] == 2
    first = post_images(api, stream, photos(0, 1), ["owl", "elk"], key="k").json()
    again = post_images(api, stream, photos(0, 1), ["owl", "elk"], key="k").json()
    assert (first["labelled"], again["labelled"], again["duplicates"]) == (2, 0, 2)
    assert again["learning"]["lessons"] == first["learning"]["lessons"] == 3
    # One that was cut short goes on: more of the same request.
    more = post_images(api, stream, photos(0, 1, 2), ["owl", "elk", "ant"], key="k").json()
    assert (more["labelled"], more["duplicates"]) == (1, 2)
    state = api.state(stream)
    other_image = post_images(api, stream, photos(0, 7), ["owl", "elk"], key="k")
    check_problem(other_image, 422, "labels.1", "Idempotency-Key", "another image")
    check_problem(post_images(api, stream, photos(0), ["elk"], key="k"), 409, "labels.0", "'owl'", "'elk'")
    assert api.state(stream) == state


def test_labels_of_a_stream_made_anew_are_its_own(api: Api) -> None:
    stream = api.make(recipe=LEARN)
    (sample,) = samples(api, stream, photos(0))
    post_images(api, stream, photos(0), ["owl"], key="k")
    api.delete(f"/v1/streams/{stream}")
    api.make(stream, recipe=LEARN)
    assert show(api, stream)["scores"]["labelled"] == 0
    check_problem(post(api, stream, [{"sample": sample, "label": "owl"}]), 422, sample)
    assert post_images(api, stream, photos(0), ["owl"], key="k").json()["labelled"] == 1


# What becomes of it


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


def test_labels_are_waited_for_as_long_as_the_settings_say(serve: Callable[..., Live]) -> None:
    with Api(serve(label_ttl_s=0.3).url) as api:
        stream = api.make()
        early, late = samples(api, stream, photos(0, 1))
        assert label(api, stream, {early: "1"})["labelled"] == 1
        time.sleep(0.4)
        problem = check_problem(post(api, stream, [{"sample": late, "label": "1"}]), 422, late, "0.3 s")
        assert [fault["where"] for fault in problem["errors"]] == ["labels.0.sample"]
    with Api(serve(label_ttl_s=0).url) as api:
        stream = api.make(recipe=LEARN)
        (prediction,) = predict(api, stream, photos(0))
        assert prediction["sample"] is None
        known = [{"sample": "0123456789abcdef-0", "label": "1"}]
        check_problem(post(api, stream, known), 422, "label_ttl_s is 0")
        assert label_images(api, stream, photos(0), ["owl"])["learning"]["lessons"] == 1


def test_the_oldest_predictions_give_way(serve: Callable[..., Live]) -> None:
    with Api(serve(max_unlabelled=3).url) as api:
        stream = api.make()
        ids = samples(api, stream, photos(0, 1)) + samples(api, stream, photos(2, 3))
        check_problem(post(api, stream, [{"sample": ids[0], "label": "1"}]), 422, ids[0])
        assert label(api, stream, dict.fromkeys(ids[1:], "1"))["labelled"] == 3


# At the same time


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
