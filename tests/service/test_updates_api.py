"""What is told of streams whose parameters move, and of the collapse guard that watches them."""

import json
from typing import Any

import httpx
import numpy as np
import pytest
from servers import NPY, Api, npy, tensors

from normstream.adaptation import Alarm, Report
from normstream.service.predictions import ALARMS, Update

GUARDED = {"entropy_floor": 0.9999999, "diversity_floor": 0.0, "momentum": 1.0, "patience": 5}  # no answer is so even


def recipe(**guard: Any) -> dict[str, Any]:
    return {"norm": {"name": "bn1"}, "update": {"name": "tent", "lr": 0.1, "guard": guard}, "output": {"name": "lame"}}


def events(api: Api, stream: str) -> list[tuple[str, dict[str, Any]]]:
    """All that happened to a stream, which is deleted so that its events end."""
    assert api.delete(f"/v1/streams/{stream}").status_code == 204
    text = api.get(f"/v1/streams/{stream}/events", headers={"Last-Event-ID": "0-0"}).text
    blocks = [
        dict(line.split(": ", 1) for line in block.splitlines()) for block in text.split("\n\n") if "data" in block
    ]
    return [(block["event"], json.loads(block["data"])) for block in blocks]


def test_a_step_that_moves_parameters_says_so(api: Api) -> None:
    stream = api.make(recipe=recipe())
    before = api.logits(stream, tensors(3))
    answer = api.step(stream, tensors(3))
    assert answer.json()["update"] == {
        "moved": True,
        "alarm": None,
        "alarms": 0,
        "restored": False,
        "answered": "before_update",
    }
    assert "Normstream-Alarm" not in answer.headers
    assert not np.array_equal(api.logits(stream, tensors(3)), before)
    (kind, step), _ = events(api, stream)
    assert kind == "step"
    assert (step["step"], step["moved"], step["alarm"], step["alarms"]) == (1, True, None, 0)
    assert step["drift"]


def test_an_alarm_is_told_in_answers_headers_and_events(api: Api) -> None:
    stream = api.make(recipe=recipe(**GUARDED))
    before = api.logits(stream, tensors(3))
    answers = [api.step(stream, tensors(3, seed)) for seed in range(3)]
    told = [answer.json()["update"] for answer in answers]
    assert [(each["moved"], each["alarm"], each["alarms"], each["restored"]) for each in told] == [
        (False, "entropy_collapse", 1, False),
        (False, "entropy_collapse", 2, False),
        (False, "entropy_collapse", 3, False),
    ]
    assert {answer.headers["Normstream-Alarm"] for answer in answers} == {"entropy_collapse"}
    np.testing.assert_array_equal(api.logits(stream, tensors(3)), before)
    *seen, _ = events(api, stream)
    assert [kind for kind, _ in seen] == ["step", "alarm"] * 3
    for (_, step), (_, alarm) in zip(seen[::2], seen[1::2], strict=True):
        assert (step["step"], step["version"]) == (alarm["step"], alarm["version"])
        assert (step["alarm"], step["alarms"]) == (alarm["alarm"], alarm["alarms"])
    assert seen[-1][1] == {"step": 3, "version": 4, "alarm": "entropy_collapse", "alarms": 3, "restored": False}


def test_an_alarm_is_told_beside_an_array_and_when_the_request_comes_again(api: Api) -> None:
    stream = api.make(recipe=recipe(**GUARDED))

    def ask() -> httpx.Response:
        headers = {"Content-Type": NPY, "Accept": NPY, "Idempotency-Key": "once"}
        return api.post(f"/v1/streams/{stream}/predict", content=npy(tensors(3)), headers=headers)

    first, second = ask(), ask()
    assert first.headers["Normstream-Alarm"] == second.headers["Normstream-Alarm"] == "entropy_collapse"
    assert second.headers["Idempotent-Replay"] == "true"
    assert second.content == first.content
    assert [kind for kind, _ in events(api, stream)] == ["step", "alarm", "deleted"]


def test_where_no_parameters_can_move_nothing_is_told_of_them(api: Api) -> None:
    moving, still = api.make(recipe=recipe(**GUARDED)), api.make(recipe="ema")
    for answer in (api.step(moving, tensors(3), adapt=False), api.step(still, tensors(3))):
        assert "update" not in answer.json()
        assert "Normstream-Alarm" not in answer.headers
    (kind, step), _ = events(api, still)
    assert kind == "step"
    assert not step.keys() & {"moved", "alarm", "alarms"}


@pytest.mark.parametrize("alarm", Alarm)
def test_every_alarm_has_its_name(alarm: Alarm) -> None:
    told = Update.of(Report(moved=False, alarm=alarm, alarms=3, restored=True))
    assert (told.alarm, told.alarms, told.restored) == ((alarm.name.lower() if alarm else None), 3, True)


def test_the_alarms_are_named_in_the_document(api: Api) -> None:
    schemas = api.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["Update"]["properties"]["alarm"]["enum"] == [*ALARMS, None]
    assert ALARMS == ("non_finite", "entropy_collapse", "diversity_collapse")


# What there is to choose from


def test_the_methods_are_listed_with_their_parameters(api: Api) -> None:
    methods = {method["name"]: method for method in api.get("/v1/methods").json()["methods"]}
    presets = api.get("/v1/recipes").json()["presets"]
    assert {name: method["preset"] for name, method in methods.items()} == presets
    tent = methods["tent"]
    assert (tent["slot"], tent["citations"], tent["backward"], tent["cost"]) == (
        "update",
        ["2006.10726"],
        True,
        "backward",
    )
    patience = next(each for each in tent["parameters"] if each["name"] == "guard.patience")
    assert (patience["type"], patience["default"], patience["range"]) == ("integer", 5, "[1, 10000]")
    assert (methods["lame"]["classifier"], methods["ema"]["layers"]) == (True, "batch normalisation")


def test_every_preset_makes_a_stream_or_is_refused_for_what_it_needs(api: Api) -> None:
    for method in api.get("/v1/methods").json()["methods"]:
        lacking = method["calibration"] or method["layers"] == "layer or group normalisation"
        lacking = lacking or "teacher" in (method["preset"].get("update") or {})
        status = 422 if lacking else 201
        assert api.post("/v1/streams", json={"recipe": method["preset"]}).status_code == status, method["name"]


def test_a_model_says_what_it_offers(api: Api) -> None:
    model = api.get("/v1/models/tiny").json()
    assert (model["classifier"], model["calibrated"]) == (True, False)
    assert {layer["statistics"] for layer in model["norm_layers"]} == {True}
