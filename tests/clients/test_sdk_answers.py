import dataclasses
import io
from datetime import UTC, datetime

import examples
import httpx
import numpy as np
import pytest

from normstream.clients import (
    ClassScore,
    Edge,
    EdgeReport,
    Labelling,
    Method,
    Model,
    NormLayer,
    Snapshot,
    Stream,
    StreamLabels,
    UnexpectedAnswer,
)
from normstream.clients.answers import (
    Methods,
    Models,
    StreamPage,
    Update,
    read_prediction,
    read_values,
)
from normstream.clients.reading import read, read_body

HEADERS = {"Normstream-Step": "42", "Normstream-Version": "44", "Normstream-Adapted": "true"}


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_model():
    model = read(Model, examples.MODEL)
    assert model.input_size == (3, 224, 224)
    assert model.preprocessing.mean == (0.5, 0.5, 0.5)
    assert model.norm_layers == (NormLayer("bn1", "BatchNormAct2d", 32, statistics=True),)


def test_models_iterate():
    models = read(Models, examples.MODELS)
    assert [model.name for model in models] == [models.default]
    assert len(models) == 1


def test_methods_are_found_by_name():
    methods = read(Methods, examples.METHODS)
    assert [method.name for method in methods] == ["alpha_bn", "bn1"]
    assert len(methods) == 2
    assert methods["bn1"].parameters == ()
    parameter = methods["alpha_bn"].parameters[0]
    assert (parameter.name, parameter.default, parameter.range, parameter.choices) == ("alpha", 0.1, "[0, 1]", None)
    with pytest.raises(KeyError):
        methods["none"]


def test_stream_has_aware_times():
    stream = read(Stream, examples.STREAM)
    assert stream.created_at == datetime(2026, 11, 21, 8, tzinfo=UTC)
    assert stream.idle_ttl_s is None


def test_last_page_may_leave_next_out():
    assert read(StreamPage, {"streams": []}).next is None


def test_prediction():
    prediction = read_prediction(httpx.Response(200, json=examples.PREDICTION))
    assert prediction.predictions[0].top == (ClassScore(340, "zebra", 0.93),)
    assert (prediction.step, prediction.version, prediction.adapted) == (42, 44, True)
    assert prediction.values is None
    assert not prediction.replayed


def test_samples_are_named_where_the_server_keeps_them():
    image = {**examples.PREDICTION["predictions"][0], "sample": None}
    kept = read_prediction(httpx.Response(200, json=examples.PREDICTION))
    assert kept.samples == (kept.predictions[0].sample,) == ("9f1c2b7a5d3e4f60-0",)
    none = read_prediction(httpx.Response(200, json={**examples.PREDICTION, "predictions": [image]}))
    assert (none.samples, none.predictions[0].sample) == (None, None)
    of_an_older_server = httpx.Response(200, content=npy(np.zeros((1, 2))), headers=HEADERS)
    assert read_values("gate-3", of_an_older_server).samples is None


def test_before_the_first_label_there_is_no_accuracy():
    scores = read(StreamLabels, {**examples.STREAM_SCORES, "scores": examples.NO_SCORES}).scores
    assert (scores.accuracy, scores.window.accuracy, scores.window.ece, scores.classes) == (None, None, None, ())


def test_an_edge_that_never_called():
    edge = read(Edge, {**examples.EDGE, "last_seen": None, "report": None, "tag": None})
    assert (edge.last_seen, edge.report) == (None, None)
    assert read(Edge, {**examples.EDGE, "report": {}}).report == EdgeReport()


def test_an_alarm_is_told_with_predictions_of_either_kind():
    header = {"Normstream-Alarm": "entropy_collapse"}
    prediction = read_prediction(
        httpx.Response(200, json={**examples.PREDICTION, "update": examples.UPDATE}, headers=header)
    )
    assert prediction.update == Update(False, "entropy_collapse", 3, False, "before_update")
    assert prediction.alarm == "entropy_collapse"
    values = httpx.Response(200, content=npy(np.zeros((1, 2))), headers={**HEADERS, **header})
    assert read_values("gate-3", values).alarm == "entropy_collapse"


def test_without_parameters_that_move_there_is_no_update():
    prediction = read_prediction(httpx.Response(200, json=examples.PREDICTION))
    assert (prediction.update, prediction.alarm) == (None, None)
    assert read_prediction(httpx.Response(200, json={**examples.PREDICTION, "update": None})).update is None


def test_replay_is_told():
    response = httpx.Response(200, json=examples.PREDICTION, headers={"Idempotent-Replay": "true"})
    assert read_prediction(response).replayed


@pytest.mark.parametrize(("header", "adapted"), [("true", True), ("True", True), ("false", False)])
def test_values_come_with_headers(header, adapted):
    values = np.random.default_rng(0).random((2, 5), np.float32)
    headers = {**HEADERS, "Normstream-Adapted": header, "Idempotent-Replay": "true"}
    prediction = read_values("gate-3", httpx.Response(200, content=npy(values), headers=headers))
    np.testing.assert_array_equal(prediction.values, values)
    assert prediction.values.dtype == np.float32
    assert (prediction.stream, prediction.step, prediction.version) == ("gate-3", 42, 44)
    assert prediction.adapted is adapted
    assert prediction.replayed


@pytest.mark.parametrize("missing", HEADERS)
def test_values_without_a_header_are_refused(missing):
    headers = {name: value for name, value in HEADERS.items() if name != missing}
    with pytest.raises(UnexpectedAnswer, match="array of predictions"):
        read_values("gate-3", httpx.Response(200, content=npy(np.zeros((1, 2))), headers=headers))


@pytest.mark.parametrize(
    "content",
    [b"", b"no array", npy(np.zeros((2, 3)))[:-1], npy(np.array([{}], dtype=object))],
    ids=["empty", "text", "cut", "pickle"],
)
def test_broken_values_are_refused(content):
    with pytest.raises(UnexpectedAnswer):
        read_values("gate-3", httpx.Response(200, content=content, headers=HEADERS))


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (Model, examples.MODEL),
        (Method, examples.METHOD),
        (Stream, examples.STREAM),
        (Snapshot, examples.SNAPSHOT),
        (Labelling, examples.LABELLING),
        (StreamLabels, examples.STREAM_SCORES),
        (Edge, examples.EDGE),
    ],
)
def test_unknown_fields_are_passed_over(kind, data):
    assert read(kind, {**data, "from_the_future": {"a": 1}}) == read(kind, data)


def test_unknown_fields_are_passed_over_inside():
    layer = {**examples.MODEL["norm_layers"][0], "groups": 2}
    assert read(Model, {**examples.MODEL, "norm_layers": [layer]}) == read(Model, examples.MODEL)


@pytest.mark.parametrize("name", examples.STREAM)
def test_a_missing_field_is_named(name):
    data = {key: value for key, value in examples.STREAM.items() if key != name}
    with pytest.raises(UnexpectedAnswer, match=f"Stream.*{name}"):
        read(Stream, data)


@pytest.mark.parametrize("data", [None, 3, [], "text", {**examples.STREAM, "created_at": "yesterday"}])
def test_another_shape_is_refused(data):
    with pytest.raises(UnexpectedAnswer, match="check that the URL"):
        read(Stream, data)


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe\x00"])
def test_a_body_that_is_no_json_is_refused(body):
    with pytest.raises(UnexpectedAnswer):
        read_body(Stream)(httpx.Response(200, content=body))


def test_answers_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        read(Stream, examples.STREAM).step = 0
