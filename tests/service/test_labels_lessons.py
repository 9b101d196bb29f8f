"""What a stream learns from labels, over real connections."""

import json

import torch
from labelling import (
    FEATURES,
    IMAGES,
    LEARN,
    NEW,
    base64_of,
    label,
    label_images,
    learnt,
    photo,
    photos,
    post,
    predict,
    same,
    samples,
    show,
)
from redis import Redis
from servers import Api, check_problem

from normstream.adaptation import ModelSpec, Recipe, Request, decode, initial_state, learn, load_model, pixels_of, step
from normstream.service.images import Images, prepare
from normstream.service.storage.keyspace import Keyspace

KEYS = Keyspace("normstream")


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


def test_adapting_and_learning_go_together(api: Api, tiny_models: tuple[ModelSpec, ModelSpec]) -> None:
    """Step, lesson, step, lesson: as in the library to the bit, and a neighbour knows nothing of it."""
    hosted = load_model(tiny_models[0])
    recipe = {"norm": {"name": "ema"}, "learn": {**IMAGES, "learns": "head", "norm": None}}
    both, neighbour, alone = api.make(recipe=recipe), api.make(), api.make()
    state = initial_state(hosted, Recipe.parse(recipe))
    for seed in range(3):
        files, names = photos(seed, seed + 1), ["owl", "1"]
        label(api, both, dict(zip(samples(api, both, files), names, strict=True)))
        predict(api, neighbour, photos(seed))
        images = prepare(Images(tuple(files)), hosted.preprocessing, 10**6)
        (adapted,) = step(hosted, [Request(state, images)])
        state = learn(hosted, adapted.state, pixels_of(hosted, images), names).state
    for seed in range(3):
        predict(api, alone, photos(seed))
    found = decode(api.state(both))
    assert found.learnt is not None
    assert state.learnt is not None
    assert (found.step, found.learnt.lessons) == (state.step, state.learnt.lessons) == (3, 3)
    assert same(found.tensors, state.tensors)
    assert same(found.learnt.tensors, state.learnt.tensors)
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
