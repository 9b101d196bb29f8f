"""The API keeps to its own OpenAPI document, whatever is sent to it, and the document to docs/rest.md."""

import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import checks
from schemathesis.specs.openapi import checks as openapi_checks
from servers import NPY, Process, npy

from normstream.service.app import create_app
from normstream.service.settings import Settings

DOCS = Path(__file__).parents[2] / "docs" / "rest.md"
BYTES = "application/octet-stream"
CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.unsupported_method,
]


DOCUMENT = create_app(Settings()).openapi()
FEW = ("alpha_bn", "ema", "tent", "lame")


def with_few_members(document: dict[str, Any]) -> dict[str, Any]:
    """Of all members every value would be tried at its bounds, for many minutes; test_bad_recipes.py does that."""
    few = deepcopy(document)
    slots = few["components"]["schemas"]["Recipe"]["properties"]
    for slot in (slots[name] for name in ("norm", "update", "output")):
        choice = slot if "oneOf" in slot else slot["anyOf"][0]
        mapping = {name: ref for name, ref in choice["discriminator"]["mapping"].items() if name in FEW}
        choice["discriminator"]["mapping"] = mapping
        choice["oneOf"] = [{"$ref": ref} for ref in mapping.values()]
    return few


schema = schemathesis.openapi.from_dict(with_few_members(DOCUMENT))


LARGE = {"components": 8, "capacity": 1, "window": 16, "places": 16}  # what a state holds so many of
STREAM, SNAPSHOT, EDGE = "gate", "snap-gate", "gate-edge"  # are there whenever a request is sent
KEY = "k" * 40  # the edge's
MODEL, FILE = "tf_efficientnet_lite0", "norm.npz"


@schemathesis.serializer(NPY)
def serialize_array(context: schemathesis.SerializationContext, value: Any) -> bytes:
    """What is generated is a string; every other time an image goes in its place."""
    data = getattr(value, "data", value)
    data = data if isinstance(data, bytes) else str(data).encode()
    return npy(np.full((1, 8, 8, 3), 7, np.uint8)) if len(data) % 2 else data


@pytest.fixture(scope="session")
def put(real: Process) -> Iterator[Callable[[], None]]:
    """Puts the stream, the snapshot and the edge there, again when they are gone."""
    with real.api() as api:
        api.make(STREAM)
        state = api.state(STREAM)

        # The model's package is made, which takes longer than any request may below.
        assert api.get(f"/v1/models/{MODEL}/package", timeout=100).status_code == 200

        def put() -> None:
            api.post("/v1/streams", json={"id": STREAM, "recipe": "ema"})
            api.post("/v1/edges", json={"id": EDGE, "key": KEY, "recipe": "ema"})
            api.put(f"/v1/snapshots/{SNAPSHOT}", content=state, headers={"Content-Type": BYTES})

        put()
        yield put


@pytest.fixture(scope="session")
def session() -> Iterator[requests.Session]:
    with requests.Session() as connections:
        yield connections


@schema.parametrize()
@settings(
    max_examples=15,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
def test_answers_are_as_the_document_says(
    case: schemathesis.Case, real: Process, put: Callable[[], None], session: requests.Session
) -> None:
    aim(case)
    try:
        case.call_and_validate(base_url=real.url, session=session, checks=CHECKS, timeout=10)
    finally:
        if case.method == "DELETE":
            put()


def aim(case: schemathesis.Case) -> None:
    """Have every other request meet what is there, by the right key, and none make a state of many megabytes."""
    found = {"id": EDGE if case.path.startswith("/v1/edges") else STREAM, "sid": SNAPSHOT, "name": MODEL, "file": FILE}
    for name, there in found.items():
        if len(str(case.path_parameters.get(name, ""))) % 2:
            case.path_parameters[name] = there
    if case.path_parameters.get("id") == EDGE:
        case.headers["Authorization"] = f"Bearer {KEY}"
    if case.path.endswith("/affine"):
        case.query.pop("wait", None)
    if case.path.endswith("/events"):
        # Those of a stream that is there do not end.
        case.path_parameters["id"] = f"no-{case.path_parameters['id']}"
    recipe = case.body.get("recipe") if isinstance(case.body, dict) else None
    for member in recipe.values() if isinstance(recipe, dict) else ():
        for name, most in LARGE.items():
            if isinstance(member, dict) and isinstance(member.get(name), int):
                member[name] = min(member[name], most)
    if isinstance(recipe, str) and recipe == "rotta":
        case.body["recipe"] = {"update": {"name": "rotta", "capacity": LARGE["capacity"]}}


def test_the_server_shows_this_document(real: Process) -> None:
    with real.api() as api:
        assert api.get("/openapi.json").json() == DOCUMENT
        assert "swagger" in api.get("/docs").text


def test_the_endpoints_of_the_document_are_those_of_the_handbook() -> None:
    found = re.findall(r"`(GET|POST|PUT|DELETE) (/[^`?]*)", DOCS.read_text())
    documented = {(method, re.sub(r"\{\w+\}", "{id}", path)) for method, path in found}
    served = {
        (method.upper(), re.sub(r"\{\w+\}", "{id}", path))
        for path, operations in DOCUMENT["paths"].items()
        for method in operations
    }
    assert served == documented
    assert len(served) == 30


def test_problems_are_documented_under_their_own_media_type() -> None:
    for operations in DOCUMENT["paths"].values():
        for operation in operations.values():
            assert list(operation["responses"]["default"]["content"]) == ["application/problem+json"]
