"""Predictions wait for their labels, and count once."""

import re
import time
from collections.abc import Callable

import numpy as np
import pytest
from labelling import (
    LEARN,
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
from servers import NPY, Api, Live, check_problem, npy, tensors


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
    other_in_all = post_images(api, stream, photos(0, 7), ["owl", "ant"], key="k")
    check_problem(other_in_all, 422, "labels.1", "Idempotency-Key", "another image")
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
