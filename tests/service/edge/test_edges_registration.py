"""The registration of edges: what is made up, found again, refused and listed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edges import KEY, SLOW_S, EdgeApi, taught
from servers import CLASSES, TINY, Api, Live, check_problem, new_id

from normstream.adaptation import ModelSpec


def test_an_edge_is_registered_found_shown_and_listed(api: Api) -> None:
    given = {"id": new_id("e"), "key": KEY, "model": "tiny", "recipe": taught()}
    made = api.post("/v1/edges", json=given)
    assert made.status_code == 201, made.text
    told = made.json()
    assert (told["id"], told["key"], told["model"], told["teacher"]) == (given["id"], KEY, "tiny", "other")
    assert (told["stream"], told["group"]) == (f"edge-{given['id']}", None)
    assert told["package"] == "/v1/models/tiny/package"
    stream = api.show(told["stream"])
    assert told["tag"] == f"{stream['generation']}.{stream['version']}"
    assert stream["recipe"] == told["recipe"]
    again = api.post("/v1/edges", json=given)
    assert (again.status_code, again.json()) == (200, told)
    shown = api.get(f"/v1/edges/{given['id']}").json()
    assert shown.keys() >= {"tag", "acknowledged", "versions_behind", "staleness_s", "samples", "uplink_saved"}
    assert (shown["tag"], shown["acknowledged"], shown["last_seen"]) == (told["tag"], None, None)
    page = api.get("/v1/edges", params={"after": given["id"][:-1], "limit": 1}).json()
    assert page["edges"] == [shown]


def test_id_and_key_are_made_up_when_left_out(api: Api) -> None:
    first, second = (api.post("/v1/edges", json={"recipe": "ema"}).json() for _ in range(2))
    assert first["id"] != second["id"]
    assert first["key"] != second["key"]
    assert len(first["key"]) >= 32
    assert (first["model"], first["teacher"]) == ("tiny", None)


@pytest.mark.parametrize(
    "other",
    [{"key": "x" * 40}, {"model": "other"}, {"recipe": taught(batch=5)}, {"group": "fog"}, {"key": None}],
    ids=lambda other: next(iter(other)),
)
def test_an_id_is_not_given_twice(api: Api, edge: EdgeApi, other: dict[str, Any]) -> None:
    given = {"id": edge.id, "key": KEY, "model": "tiny", "recipe": taught(), **other}
    answer = api.post("/v1/edges", json=given)
    check_problem(answer, 409, "another id")
    assert KEY not in answer.text
    assert edge.ask().status_code == 200


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"recipe": taught(teacher="resnet101")}, 422, ("body.recipe", "host 'resnet101' too")),
        ({"recipe": "cema"}, 422, ("'tf_efficientnet_lite2'", "update.teacher")),
        ({"recipe": taught(batch=65)}, 422, ("body.recipe", "65 images", "takes 64", "NORMSTREAM_MAX_LESSON")),
        ({"recipe": taught(batch=0)}, 422, ("batch",)),
        ({"recipe": "none"}, 422, ("unknown recipe",)),
        ({"recipe": "ln_align"}, 422, ("body.recipe", "layer or group")),
        ({"model": "none"}, 404, ("'none'", "tiny")),
        ({"model": "é\u0000"}, 404, ()),
        ({"id": "a/b"}, 422, ("body.id",)),
        ({"id": ".a"}, 422, ("body.id",)),
        ({"id": "a" * 101}, 422, ("body.id",)),
        ({"group": "a b"}, 422, ("body.group",)),
        ({"secret": 1}, 422, ("body.secret",)),
    ],
)
def test_what_cannot_be_registered(api: Api, fields: dict[str, Any], status: int, words: tuple[str, ...]) -> None:
    name = new_id("e")
    given = {"id": name, "key": KEY, "model": "tiny", "recipe": "ema", **fields}
    check_problem(api.post("/v1/edges", json=given), status, *words)
    check_problem(api.get(f"/v1/streams/edge-{name}"), 404)


@pytest.mark.parametrize("key", ["short", "k" * 129, "k" * 40 + "!", "", 5, ["k" * 40]])
def test_a_key_that_is_refused_is_not_repeated(api: Api, key: Any) -> None:
    answer = api.post("/v1/edges", json={"key": key, "recipe": "ema"})
    check_problem(answer, 422, "body.key")
    assert repr(key) not in answer.text


def test_a_teacher_of_other_classes_is_refused(
    serve: Callable[..., Live], tiny_models: tuple[ModelSpec, ModelSpec], tmp_path: Path
) -> None:
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model(TINY, num_classes=CLASSES + 1).state_dict(), tmp_path / "more.safetensors")
    more = ModelSpec(name="other", architecture=TINY, checkpoint=tmp_path / "more.safetensors", classes=CLASSES + 1)
    with Api(serve(models=(tiny_models[0], more)).url, timeout=SLOW_S) as api:
        check_problem(EdgeApi(api).registered, 422, "8 classes", "7")


def test_edges_are_listed_page_by_page(api: Api) -> None:
    prefix = new_id("page")
    for number in (2, 0, 1):
        EdgeApi(api, f"{prefix}-{number}", recipe="ema")
    found, after = [], f"{prefix}-"
    for size in (2, 1):
        page = api.get("/v1/edges", params={"limit": size, "after": after}).json()
        found += [each["id"] for each in page["edges"]]
        after = page["next"] or found[-1]
    assert found == [f"{prefix}-{number}" for number in range(3)]
    for query in ({"limit": 0}, {"limit": 1001}, {"after": "a b"}):
        check_problem(api.get("/v1/edges", params=query), 422)
    assert json.loads(api.get("/v1/edges", params={"after": "zzzz"}).text) == {"edges": [], "next": None}
