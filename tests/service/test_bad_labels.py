"""Labels that cannot be: each request is refused as a whole, in plain words, and changes nothing."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import torch
from labelling import (
    FEATURES,
    LEARN,
    NEW,
    base64_of,
    label,
    label_images,
    photo,
    photos,
    post,
    post_images,
    samples,
    show,
)
from redis import Redis
from servers import Api, Live, check_problem, live, new_id, tiny, tiny_checkpoint

from normstream.adaptation import ModelSpec, decode, encode
from normstream.service.errors import Invalid
from normstream.service.label_checks import MOST_COUNTED, check_tally
from normstream.service.settings import Settings
from normstream.service.storage.keyspace import Keyspace

KEYS = Keyspace("normstream")
JSON = "application/json"
PHOTO = base64_of(photo(0))
TWO_HEADS = "deit_tiny_distilled_patch16_224"  # answers with the mean of two heads
OTHER_ID = "0123456789abcdef-0"


@pytest.fixture(scope="module")
def streams(server: Live) -> dict[str, str]:
    """A stream that learns and one that does not, each with a label and two predictions that wait for theirs."""
    with Api(server.url) as api:
        made = {"learns": api.make(recipe={"learn": {**LEARN["learn"], "max_new_classes": 2}}), "counts": api.make()}
        for kind, stream in list(made.items()):
            labelled, first, second = samples(api, stream, photos(0, 1, 2))
            label(api, stream, {labelled: "1"})
            made |= {f"{kind}.labelled": labelled, f"{kind}.first": first, f"{kind}.second": second}
        return made


def everything(redis: Redis, stream: str) -> list[Any]:
    """All that the store holds of a stream."""
    found: list[Any] = [redis.hgetall(KEYS.stream(stream)), redis.xlen(KEYS.events(stream))]
    return [*found, redis.hgetall(KEYS.unlabelled(stream)[0])]


@pytest.fixture(params=["learns", "counts"])
def stream(request: pytest.FixtureRequest, redis: Redis, streams: dict[str, str]) -> Iterator[str]:
    """Either stream, which the test leaves as it was."""
    found = streams[request.param]
    before = everything(redis, found)
    yield found
    assert everything(redis, found) == before


def of(streams: dict[str, str], stream: str) -> tuple[str, str, str]:
    """A stream's prediction that has its label, and two that wait."""
    kind = "learns" if stream == streams["learns"] else "counts"
    return streams[f"{kind}.labelled"], streams[f"{kind}.first"], streams[f"{kind}.second"]


# What is wrong with one label, beside a right one, where it is said to be, and the words.
WRONG: dict[str, tuple[Any, int, str, tuple[str, ...]]] = {
    "neither sample nor image": ({"label": "1"}, 422, "body.labels.1", ("either sample or image",)),
    "both": ({"sample": OTHER_ID, "image": PHOTO, "label": "1"}, 422, "body.labels.1", ("either sample or image",)),
    "no class": ({"image": PHOTO}, 422, "body.labels.1", ("label, class or both",)),
    "a class below 0": ({"image": PHOTO, "class": -1}, 422, "body.labels.1.class", ("-1",)),
    "a class by text": ({"image": PHOTO, "class": "1"}, 422, "body.labels.1.class", ("integer", "'1'")),
    "a class by truth": ({"image": PHOTO, "class": True}, 422, "body.labels.1.class", ("integer",)),
    "a class that is half": ({"image": PHOTO, "class": 0.5}, 422, "body.labels.1.class", ("0.5",)),
    "a class out of range": ({"image": PHOTO, "class": 7}, 422, "labels.1.class", ("no class 7", "has 7")),
    "a huge class": ({"image": PHOTO, "class": 10**30}, 422, "labels.1.class", ("no class 1000",)),
    "a label by number": ({"image": PHOTO, "label": 1}, 422, "body.labels.1.label", ("string", "got 1")),
    "an empty label": ({"image": PHOTO, "label": ""}, 422, "body.labels.1.label", ("1 to 128 printable",)),
    "a label of spaces": ({"image": PHOTO, "label": "  "}, 422, "body.labels.1.label", ("1 to 128 printable",)),
    "a label of two lines": ({"image": PHOTO, "label": "a\nb"}, 422, "body.labels.1.label", ("printable",)),
    "a label that is too long": ({"image": PHOTO, "label": "a" * 129}, 422, "body.labels.1.label", ("1 to 128",)),
    "label and class of two": (
        {"image": PHOTO, "label": "2", "class": 1},
        422,
        "labels.1",
        ("class 1 is '1' and not '2'",),
    ),
    "a new label for a class": ({"image": PHOTO, "label": "owl", "class": 1}, 422, "labels.1", ("'1' and not 'owl'",)),
    "a class that does not exist yet": ({"image": PHOTO, "label": "owl", "class": 7}, 422, "labels.1.class", ("7",)),
    "an unknown field": ({"image": PHOTO, "name": "1"}, 422, "body.labels.1.name", ("not permitted",)),
    "a label that is no object": ("1", 422, "body.labels.1", ("object",)),
    "no base64": ({"image": "%%%", "label": "1"}, 422, "labels.1.image", ("base64",)),
    "no image": ({"image": base64_of(b"hello"), "label": "1"}, 422, "labels.1.image", ("not a JPEG, PNG, WEBP",)),
    "an empty image": ({"image": "", "label": "1"}, 422, "labels.1.image", ("empty",)),
    "a broken image": (
        {"image": base64_of(photo(0)[:-900]), "label": "1"},
        422,
        "labels.1.image",
        ("broken or cut short",),
    ),
    "an image by number": ({"image": 5, "label": "1"}, 422, "body.labels.1.image", ("string",)),
    "no id of a prediction": ({"sample": "x", "label": "1"}, 422, "body.labels.1.sample", ("pattern", "'x'")),
    "an unknown prediction": (
        {"sample": OTHER_ID, "label": "1"},
        422,
        "labels.1.sample",
        (OTHER_ID, "of this stream", "3600 s"),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_label_refuses_the_whole_request(api: Api, stream: str, streams: dict[str, str], name: str) -> None:
    wrong, status, where, words = WRONG[name]
    _, waiting, _ = of(streams, stream)
    problem = check_problem(post(api, stream, [{"sample": waiting, "label": "1"}, wrong]), status, *words)
    assert [fault["where"] for fault in problem["errors"]][:1] == [where]


BODIES: dict[str, tuple[Any, int, tuple[str, ...]]] = {
    "no label": (b'{"labels": []}', 422, ("labels", "at least one")),
    "no labels": (b"{}", 422, ("body.labels", "required")),
    "labels by name": (b'{"labels": {"x": "1"}}', 422, ("body.labels", "array")),
    "no object": (b"[]", 422, ("body", "object")),
    "nothing": (b"", 400, ("not valid JSON",)),
    "broken": (b'{"labels": [', 400, ("not valid JSON",)),
    "a lone surrogate": (rb'{"labels": [{"image": "", "label": "\ud800"}]}', 400, ("not valid JSON",)),
    "an unknown field": (b'{"labels": [], "learn": false}', 422, ("body.learn", "not permitted")),
    "more than allowed": (
        json.dumps({"labels": [{"image": PHOTO, "label": "1"}] * 9}).encode(),
        413,
        ("9 labels", "limit is 8"),
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_wrong_body_is_refused(api: Api, stream: str, name: str) -> None:
    content, status, words = BODIES[name]
    answer = api.post(f"/v1/streams/{stream}/labels", content=content, headers={"Content-Type": JSON})
    check_problem(answer, status, *words)


FORMS: dict[str, tuple[dict[str, Any], int, tuple[str, ...]]] = {
    "no labels": ({"files": [("images", photo(0))]}, 422, ("labels", "missing")),
    "too few labels": (
        {"files": [("images", photo(0))] * 2, "data": {"labels": '["1"]'}},
        422,
        ("labels", "1 labels for 2 images"),
    ),
    "no images": ({"files": {"labels": (None, '["1"]')}}, 422, ("labels", "1 labels for 0 images")),
    "labels that are no list": ({"files": [("images", photo(0))], "data": {"labels": '"1"'}}, 422, ("labels", "array")),
    "labels that are no JSON": ({"files": [("images", photo(0))], "data": {"labels": "1,2"}}, 400, ("JSON",)),
    "a label of another type": (
        {"files": [("images", photo(0))], "data": {"labels": "[1]"}},
        422,
        ("labels.0", "object"),
    ),
    "a broken image": (
        {"files": [("images", photo(0)), ("images", photo(1)[:99])], "data": {"labels": '["1", "2"]'}},
        422,
        ("images.1",),
    ),
    "an unknown field": (
        {"files": [("images", photo(0)), ("masks", photo(0))], "data": {"labels": '["1"]'}},
        422,
        ("'masks'", "'images'", "'labels'"),
    ),
    "labels twice": (
        {"files": [("images", photo(0)), ("labels", ("l.json", b'["1"]'))], "data": {"labels": '["2"]'}},
        422,
        ("labels", "there twice"),
    ),
    "two texts": (
        {"files": [("images", photo(0))], "data": {"labels": '["1"]', "note": "x"}},
        422,
        ("too many form fields",),
    ),
    "more than allowed": (
        {"files": [("images", photo(0))] * 9, "data": {"labels": json.dumps(["1"] * 9)}},
        413,
        ("9 labels", "limit is 8"),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_wrong_form_is_refused(api: Api, stream: str, name: str) -> None:
    request, status, words = FORMS[name]
    check_problem(api.post(f"/v1/streams/{stream}/labels", **request), status, *words)


def test_other_kinds_of_body_and_query_are_refused(api: Api, stream: str) -> None:
    path = f"/v1/streams/{stream}/labels"
    check_problem(api.post(path, content=b"1", headers={"Content-Type": "text/csv"}), 415, "'text/csv'", JSON)
    check_problem(post(api, stream, [{"image": PHOTO, "label": "1"}], learn="perhaps"), 422, "query.learn")
    check_problem(post(api, stream, [{"image": PHOTO, "label": "1"}], key="a b"), 422, "idempotency-key")
    check_problem(api.put(path), 405)


def test_a_contradiction_is_told(api: Api, stream: str, streams: dict[str, str]) -> None:
    labelled, first, second = of(streams, stream)
    before = [{"sample": first, "label": "1"}]
    check_problem(post(api, stream, [*before, {"sample": labelled, "label": "2"}]), 409, "labels.1", "'1'", "'2'")
    within = [*before, {"sample": second, "label": "2"}, {"sample": first, "class": 3}]
    check_problem(post(api, stream, within), 422, "labels.2", "'1' in labels.0", "'3' here")


def test_another_stream_s_prediction_is_unknown(api: Api, stream: str, streams: dict[str, str]) -> None:
    theirs = streams["counts.first" if stream == streams["learns"] else "learns.first"]
    check_problem(post(api, stream, [{"sample": theirs, "label": "1"}]), 422, theirs, "of this stream")


def test_a_stream_that_does_not_learn_has_no_new_classes(api: Api, streams: dict[str, str]) -> None:
    problem = post(api, streams["counts"], [{"image": PHOTO, "label": "owl"}])
    check_problem(problem, 422, "labels.0.label", "'owl'", "learns none")


def test_a_head_grows_as_far_as_its_recipe_allows(api: Api) -> None:
    stream = api.make(recipe={"learn": {**NEW["learn"], "max_new_classes": 2}})
    label_images(api, stream, photos(0), ["owl"])
    many = post_images(api, stream, photos(1, 2), ["elk", "ant"])
    check_problem(many, 422, "labels", "'ant', 'elk'", "3 new classes", "is 2")
    assert show(api, stream)["scores"]["labelled"] == 1
    label_images(api, stream, photos(1), ["elk"])
    check_problem(post_images(api, stream, photos(2), ["ant"]), 422, "max_new_classes")


def test_names_that_are_only_counted_stand_in_no_class_s_way(api: Api) -> None:
    stream = api.make(recipe={"learn": {**NEW["learn"], "max_new_classes": 1, "unlabelled": "nothing"}})
    label_images(api, stream, photos(0, 1), ["typo", "slip"], learn=False)
    label_images(api, stream, photos(2), ["owl"])
    (sample,) = samples(api, stream, photos(3))
    assert label(api, stream, {sample: "elk"})["unlearnt"] == 1  # nothing was kept to learn from
    label_images(api, stream, photos(4), ["ant"], learn=False)
    check_problem(post_images(api, stream, photos(5), ["ant"]), 422, "labels", "'ant'", "2 new classes")
    assert show(api, stream)["classes"] == ["owl"]
    assert [each["label"] for each in show(api, stream)["scores"]["classes"]] == ["typo", "slip", "owl", "elk", "ant"]


def test_a_class_may_be_learnt_in_the_place_of_one_that_a_restore_took_back(api: Api) -> None:
    stream = api.make(recipe={"learn": {**NEW["learn"], "max_new_classes": 1}})
    snapshot = api.post(f"/v1/streams/{stream}/snapshots").json()["id"]
    label_images(api, stream, photos(0), ["owl"])
    assert api.post(f"/v1/streams/{stream}/restore", json={"snapshot": snapshot}).status_code == 200
    assert label_images(api, stream, photos(1), ["elk"])["learning"]["new_classes"] == ["elk"]


def test_only_so_many_names_are_counted_that_are_no_classes() -> None:
    counted = [f"name {number}" for number in range(MOST_COUNTED)]
    check_tally(counted, counted)  # none is new
    check_tally(["another"], counted[1:])
    with pytest.raises(Invalid, match=rf"'another' .* {MOST_COUNTED + 1} names .* reset"):
        check_tally(["another", counted[0]], counted)


def test_names_of_before_a_restore_stand_in_no_known_one_s_way(api: Api) -> None:
    recipe = {"learn": {**NEW["learn"], "max_new_classes": 2}}
    stream, other = api.make(recipe=recipe), api.make(recipe=recipe)
    label_images(api, stream, photos(0, 1), ["owl", "elk"])
    label_images(api, other, photos(0, 1), ["ant", "bee"])
    snapshot = api.post(f"/v1/streams/{other}/snapshots").json()["id"]
    assert api.post(f"/v1/streams/{stream}/restore", json={"snapshot": snapshot}).status_code == 200
    assert label_images(api, stream, photos(2), ["ant"])["labelled"] == 1
    check_problem(post_images(api, stream, photos(3), ["owl"]), 422, "max_new_classes is 2")


def test_features_and_images_that_cannot_be_learnt_from_together_are_refused(api: Api) -> None:
    stream = api.make(recipe={"learn": {**FEATURES, "head": "new"}})
    snapshot = api.post(f"/v1/streams/{stream}/snapshots").json()["id"]
    label_images(api, stream, photos(0, 1), ["owl", "elk"])
    (sample,) = samples(api, stream, photos(2))
    assert api.post(f"/v1/streams/{stream}/restore", json={"snapshot": snapshot}).status_code == 200
    both = [{"sample": sample, "label": "owl"}, {"image": PHOTO, "label": "elk"}]
    check_problem(post(api, stream, both), 422, "labels", "two requests")
    assert show(api, stream)["classes"] == []
    for each in both:
        assert post(api, stream, [each]).json()["learning"]["lessons"] > 0
    assert show(api, stream)["classes"] == ["owl", "elk"]


def test_names_are_stripped(api: Api) -> None:
    stream = api.make(recipe=NEW)
    answer = label_images(api, stream, photos(0, 1, 2), ["  snowy owl ", "snowy owl", "Größe"])
    assert answer["learning"]["new_classes"] == ["snowy owl", "Größe"]


def test_a_name_is_the_same_however_it_was_typed(api: Api) -> None:
    stream = api.make(recipe=NEW)
    answer = label_images(api, stream, photos(0, 1), ["cafe\u0301", "caf\u00e9"])
    assert answer["learning"]["new_classes"] == ["caf\u00e9"]
    assert [each["labelled"] for each in answer["scores"]["classes"]] == [2]


def test_there_is_nothing_to_label_in_an_unknown_stream(api: Api) -> None:
    check_problem(post(api, "none", [{"image": PHOTO, "label": "1"}]), 404, "There is no stream 'none'")
    check_problem(api.get("/v1/streams/none/labels"), 404, "There is no stream 'none'")


def test_images_of_too_many_pixels_are_refused(serve: Callable[..., Live]) -> None:
    with Api(serve(max_pixels=1000).url) as api:
        stream = api.make()
        answer = post(
            api, stream, [{"image": base64_of(photo(0, (20, 20))), "label": "1"}, {"image": PHOTO, "label": "1"}]
        )
        check_problem(answer, 413, "labels.1.image is 40x30")
        assert api.show(stream)["version"] == 1


def test_an_edge_cannot_follow_a_stream_that_learns(api: Api) -> None:
    answer = api.post("/v1/edges", json={"id": new_id("edge"), "recipe": LEARN})
    check_problem(answer, 422, "body.recipe.learn", "head of its own")


def test_a_model_whose_head_cannot_grow_is_told(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("head")
    spec: ModelSpec = tiny(tiny_checkpoint(folder, 0, TWO_HEADS), "twins", TWO_HEADS)
    with live(Settings(models=(spec,), redis_url=redis_url)) as running, Api(running.url) as api:
        answer: httpx.Response = api.post("/v1/streams", json={"recipe": LEARN})
        check_problem(answer, 422, "body.recipe", "linear classifier", "ends otherwise")


def forged(data: bytes, name: str) -> bytes:
    state = decode(data)
    assert state.learnt is not None
    tensors = dict(state.learnt.tensors)
    match name:
        case "nothing was learnt":
            return encode(replace(state, learnt=None))
        case "a head of numbers that are none":
            tensors["head.weight"] = tensors["head.weight"] * float("nan")
        case "a head for other classes":
            tensors["head.weight"], tensors["head.bias"] = tensors["head.weight"][:-1], tensors["head.bias"][:-1]
        case "a tensor too many":
            tensors["more"] = torch.zeros(1)
        case "a memory cut short":
            tensors["replay.data"] = tensors["replay.data"][:-1]
    return encode(replace(state, learnt=replace(state.learnt, tensors=tensors)))


@pytest.mark.parametrize(
    "name",
    [
        "nothing was learnt",
        "a head of numbers that are none",
        "a head for other classes",
        "a tensor too many",
        "a memory cut short",
    ],
)
def test_what_cannot_have_been_learnt_is_not_taken_in(api: Api, streams: dict[str, str], name: str) -> None:
    data = forged(api.state(streams["learns"]), name)
    answer = api.put("/v1/snapshots/forged", content=data, headers={"Content-Type": "application/octet-stream"})
    check_problem(answer, 422, "no state of a stream")
    check_problem(api.get("/v1/snapshots/forged"), 404)


def test_a_memory_that_holds_no_images_is_told_when_it_is_replayed(api: Api) -> None:
    stream = api.make(recipe={"learn": {**LEARN["learn"], "method": {"name": "derpp"}}})
    label_images(api, stream, photos(3, 4), ["1", "2"])
    state = decode(api.state(stream))
    assert state.learnt is not None
    tensors = state.learnt.tensors | {"replay.data": torch.zeros_like(state.learnt.tensors["replay.data"])}
    data = encode(replace(state, learnt=replace(state.learnt, tensors=tensors)))
    snapshot = new_id()
    kind = {"Content-Type": "application/octet-stream"}
    assert api.put(f"/v1/snapshots/{snapshot}", content=data, headers=kind).status_code == 201
    assert api.post(f"/v1/streams/{stream}/restore", json={"snapshot": snapshot}).status_code == 200
    before = show(api, stream)
    check_problem(post_images(api, stream, photos(5), ["1"]), 409, "memory", "damaged", "Reset")
    assert show(api, stream) == before
