"""Bad recipes, member by member: each is refused with the reason and the remedy, and nothing is made."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from servers import Api, check_problem, live, new_id, tensors, tiny, tiny_checkpoint

from normstream.adaptation import Method, catalogue
from normstream.adaptation.catalogue import Parameter
from normstream.adaptation.member import Need
from normstream.service.settings import Settings

METHODS = catalogue()
ODD = {"plain": "test_nfnet", "tokens": "test_vit"}  # no normalisation layers; layer norms alone


def name_of(method: Method) -> str:
    return method.name


def recipe(method: Method, **values: Any) -> dict[str, Any]:
    return nested(method.slot, {"name": method.name, **values})


def refused(api: Api, recipe: Any, *words: str, **fields: Any) -> dict[str, Any]:
    stream = new_id("none")
    problem = check_problem(api.post("/v1/streams", json={"id": stream, "recipe": recipe, **fields}), 422, *words)
    check_problem(api.get(f"/v1/streams/{stream}"), 404)
    return problem


@pytest.fixture(scope="module")
def odd(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A server of models that lack what members need."""
    folder = tmp_path_factory.mktemp("odd")
    specs = [tiny(tiny_checkpoint(folder, 0, kind), name, kind) for name, kind in ODD.items()]
    with live(Settings(models=specs, redis_url=redis_url)) as running, Api(running.url) as api:
        yield api


def outside(parameter: Parameter) -> Iterator[Any]:
    """Values that the parameter may not take."""
    if parameter.choices:
        yield "none of them"
    if parameter.minimum is not None:
        yield parameter.minimum - 1
    if parameter.maximum is not None:
        yield parameter.maximum + 1
    if (parameter.range or "")[:1] == "(" and parameter.minimum is not None:
        yield parameter.minimum
    if (parameter.range or "")[-1:] == ")" and parameter.maximum is not None:
        yield parameter.maximum
    yield {"boolean": "perhaps", "string": 5}.get(parameter.type, "much")
    yield None if parameter.default is not None else []


def nested(name: str, value: Any) -> dict[str, Any]:
    group, dot, rest = name.partition(".")
    return {group: nested(rest, value) if dot else value}


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_every_value_out_of_range_is_named_with_its_place(api: Api, method: Method) -> None:
    for parameter in method.parameters:
        place = f"body.recipe.{method.slot}.{method.name}.{parameter.name}"
        for value in outside(parameter):
            problem = refused(api, recipe(method, **nested(parameter.name, value)), place)
            assert [fault["where"] for fault in problem["errors"]] == [place]
            if not isinstance(value, float):
                assert f"got {value!r}" in problem["detail"]


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_unknown_and_misplaced_values_are_named(api: Api, method: Method) -> None:
    refused(api, recipe(method, alpah=1), f"body.recipe.{method.slot}.{method.name}.alpah", "not permitted")
    if any(parameter.name.startswith("guard.") for parameter in method.parameters):
        place = f"body.recipe.{method.slot}.{method.name}.guard"
        refused(api, recipe(method, guard={"patients": 5}), f"{place}.patients", "not permitted")
        refused(api, recipe(method, guard=5), place)


@pytest.mark.parametrize("slot", ["norm", "update", "output", "learn.method", "learn.norm"])
@pytest.mark.parametrize("member", [{"name": "tint"}, {"name": 5}, {}, 5, "tent", []], ids=str)
def test_what_is_no_member_of_a_slot_is_refused(api: Api, slot: str, member: Any) -> None:
    refused(api, nested(slot, member), f"body.recipe.{slot}")


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_a_member_fits_its_own_slot_alone(api: Api, method: Method) -> None:
    for slot in {each.slot for each in METHODS} - {method.slot}:
        there = next(each.name for each in METHODS if each.slot == slot)
        refused(api, nested(slot, {"name": method.name}), f"body.recipe.{slot}", f"'{method.name}'", f"'{there}'")


@pytest.mark.parametrize("method", [each for each in METHODS if each.calibration], ids=name_of)
def test_a_model_that_is_not_calibrated_is_told_with_the_command_to_run(odd: Api, method: Method) -> None:
    refused(odd, recipe(method), f"'{method.name}'", "normstream calibrate tokens", model="tokens")


@pytest.mark.parametrize("method", [each for each in METHODS if each.layers], ids=name_of)
def test_a_model_without_normalisation_layers_is_told(odd: Api, method: Method) -> None:
    instead = "learn.norm: null" if method.slot == "learn.norm" else "'source'"
    refused(odd, recipe(method), f"'{method.name}' adapts", "no such layer", instead, model="plain")


@pytest.mark.parametrize("method", [each for each in METHODS if each.layers == Need.BATCH_NORM.value], ids=name_of)
def test_a_model_without_batch_norms_is_told(odd: Api, method: Method) -> None:
    refused(odd, recipe(method), f"'{method.name}' adapts", "no such layer", "leave its slot out", model="tokens")


@pytest.mark.parametrize("method", [each for each in METHODS if each.layers == Need.SAMPLE_NORM.value], ids=name_of)
def test_a_model_without_layer_and_group_norms_is_told(api: Api, method: Method) -> None:
    refused(api, recipe(method), f"'{method.name}' adapts", "no such layer", "leave its slot out", model="tiny")


def test_of_many_slots_that_are_wrong_each_is_named(api: Api) -> None:
    wrong = {
        "norm": {"name": "ema", "alpha": 2},
        "update": {"name": "tent", "lr": 0, "guard": {"patience": 0}},
        "output": {"name": "lame", "k": 0},
    }
    problem = refused(api, wrong)
    assert [fault["where"] for fault in problem["errors"]] == [
        "body.recipe.norm.ema.alpha",
        "body.recipe.update.tent.lr",
        "body.recipe.update.tent.guard.patience",
        "body.recipe.output.lame.k",
    ]


def test_one_slot_that_the_model_cannot_follow_refuses_the_recipe(odd: Api) -> None:
    whole = {"update": {"name": "tent"}, "output": {"name": "lame"}}
    refused(odd, whole, "'tent'", model="plain")
    refused(odd, {**whole, "norm": {"name": "bn1"}}, "'bn1'", model="tokens")


@pytest.mark.parametrize("model", ODD)
def test_what_an_odd_model_can_follow_is_served(odd: Api, model: str) -> None:
    """A transformer's layer norms have parameters that move; any network's predictions can be adjusted."""
    whole = {"update": {"name": "tent"}, "output": {"name": "lame"}} if model == "tokens" else "lame"
    answer: httpx.Response = odd.step(odd.make(recipe=whole, model=model), tensors(4))
    assert answer.json()["step"] == 1
    assert answer.json().get("update", {}).get("moved") == (True if model == "tokens" else None)


REPLAY = {"keep": "images", "batch": 20}


@pytest.mark.parametrize(
    ("learn", "images"),
    [
        ({"batch": 65}, 65),
        ({"batch": 45, "replay": REPLAY}, 65),
        ({"batch": 25, "replay": REPLAY, "method": {"name": "derpp"}}, 65),  # draws twice
    ],
)
def test_a_lesson_of_too_many_images_is_refused_before_it_fills_the_memory(
    api: Api, learn: dict[str, Any], images: int
) -> None:
    refused(api, {"learn": learn}, "body.recipe", f"{images} images", "takes 64", "lower batch")
    api.make(recipe={"learn": {**learn, "batch": learn["batch"] - 1}})


def test_features_are_no_images(api: Api) -> None:
    features = {"learns": "head", "norm": None, "replay": {"keep": "features", "batch": 512}}
    api.make(recipe={"learn": {**features, "batch": 512}})
