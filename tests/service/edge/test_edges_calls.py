"""The calls that are an edge's own: they need its key, its model and the store."""

import logging
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from edges import BATCH, KEY, SLOW_S, EdgeApi, crops, learnt
from servers import Api, Live, check_problem

from normstream.adaptation import ModelSpec


def own_calls(api: Api, edge_id: str, headers: dict[str, str]) -> list[httpx.Response]:
    report = [("report", (None, b"{}"))]
    return [
        api.post(f"/v1/edges/{edge_id}/samples", files=report, headers=headers),
        api.get(f"/v1/edges/{edge_id}/affine", headers=headers),
    ]


def test_an_edges_calls_need_its_key(api: Api, edge: EdgeApi) -> None:
    for headers in ({}, {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer"}):
        for answer in own_calls(api, edge.id, headers):
            check_problem(answer, 401, "Authorization: Bearer KEY")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    other = EdgeApi(api, key="o" * 40)
    for headers in ({"Authorization": "Bearer wrong"}, other.headers):
        for answer in own_calls(api, edge.id, headers):
            check_problem(answer, 403, "another key")
            assert KEY not in answer.text
    for answer in own_calls(api, "no-such", edge.headers):
        check_problem(answer, 404, "no-such", "POST /v1/edges")


def test_the_key_is_told_once_and_stands_nowhere_else(
    api: Api, edge: EdgeApi, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    edge.upload(crops(*"abcd"), {"seen": 9, "uploaded": 4})
    learnt(edge, BATCH)
    edge.ask()
    pages = [f"/v1/edges/{edge.id}", "/v1/edges", f"/v1/streams/{edge.stream}", "/v1/streams"]
    texts = [api.get(page).text for page in pages]
    api.delete(f"/v1/edges/{edge.id}")
    texts.append(api.get(f"/v1/streams/{edge.stream}/events", headers={"Last-Event-ID": "0-0"}).text)
    assert "taught" in texts[-1]
    for text in [*texts, caplog.text]:
        assert KEY not in text


def test_an_edge_whose_model_is_not_hosted_is_to_come_back(
    edge: EdgeApi, serve: Callable[..., Live], tiny_models: tuple[ModelSpec, ModelSpec]
) -> None:
    with Api(serve(models=tiny_models[1:]).url, timeout=SLOW_S) as api:
        for answer in own_calls(api, edge.id, edge.headers):
            check_problem(answer, 503, "'tiny'")
            assert int(answer.headers["Retry-After"]) >= 1
    assert edge.show()["last_seen"] is not None


def test_the_store_may_be_away(serve: Callable[..., Live], tmp_path: Path) -> None:
    with Api(serve(redis_url=f"unix://{tmp_path}/none.sock").url, timeout=SLOW_S) as api:
        for answer in [*own_calls(api, "gate", {"Authorization": f"Bearer {KEY}"}), api.get("/v1/edges")]:
            check_problem(answer, 503)
