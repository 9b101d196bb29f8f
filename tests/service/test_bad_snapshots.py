"""Snapshots that do not fit, and uploads that are none: each is refused and nothing is harmed."""

import json
import struct
from dataclasses import replace
from typing import Any

import httpx
import pytest
import torch
from bad_requests import BYTES
from servers import Api, Live, check_problem

from normstream.adaptation import StreamState, decode, encode


def snapshot_of(api: Api, stream: str) -> tuple[str, bytes]:
    sid = api.post(f"/v1/streams/{stream}/snapshots").json()["id"]
    return sid, api.get(f"/v1/snapshots/{sid}").content


@pytest.fixture(scope="module")
def foreign(server: Live) -> dict[str, tuple[str, bytes]]:
    """Snapshots, id and bytes, that do not fit a stream of the tiny model with the recipe `ema`."""
    with Api(server.url) as api:
        streams = {
            "model": api.make(model="other"),
            "recipe": api.make(recipe="alpha_bn"),
            "value": api.make(recipe={"norm": {"name": "ema", "momentum": 0.5}}),
        }
        return {kind: snapshot_of(api, stream) for kind, stream in streams.items()}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("model", ("'other' (sha256:", "'tiny' (sha256:")),
        ("recipe", ('"alpha_bn"', '"ema"')),
        ("value", ('"momentum":0.5', '"momentum":0.0125')),
    ],
)
def test_a_snapshot_of_something_else_is_not_restored_and_both_are_named(
    foreign: dict[str, tuple[str, bytes]], api: Api, unharmed: str, kind: str, words: tuple[str, ...]
) -> None:
    answer = api.post(f"/v1/streams/{unharmed}/restore", json={"snapshot": foreign[kind][0]})
    check_problem(answer, 409, "does not fit", *words)


@pytest.fixture(scope="module")
def sound(server: Live, neighbours: tuple[str, str]) -> bytes:
    """A state that a snapshot may hold."""
    with Api(server.url) as api:
        return api.state(neighbours[0])


def upload(api: Api, data: bytes, sid: str = "bad", kind: str = BYTES) -> httpx.Response:
    return api.put(f"/v1/snapshots/{sid}", content=data, headers={"Content-Type": kind})


def test_an_upload_over_another_snapshot_is_refused(
    foreign: dict[str, tuple[str, bytes]], api: Api, unharmed: str, sound: bytes
) -> None:
    sid, own = foreign["recipe"]
    check_problem(upload(api, sound, sid), 409, sid, "Choose another id")
    assert api.get(f"/v1/snapshots/{sid}").content == own
    assert upload(api, own, sid).status_code == 200  # the same bytes are no other snapshot


@pytest.mark.parametrize("part", [0.0, 0.001, 0.01, 0.3, 0.6, 0.999])
def test_a_truncated_upload_is_refused(api: Api, unharmed: str, sound: bytes, part: float) -> None:
    check_problem(upload(api, sound[: int(len(sound) * part)]), 422, "no state")


@pytest.mark.parametrize("place", [0, 4, 9, 40, 200, 0.5, 0.99])
def test_a_changed_upload_is_refused(api: Api, unharmed: str, sound: bytes, place: float) -> None:
    changed = bytearray(sound)
    changed[place if isinstance(place, int) else int(len(sound) * place)] ^= 1
    check_problem(upload(api, bytes(changed)), 422, "no state")


def other(state: StreamState, **tensors: Any) -> StreamState:
    return replace(state, tensors={**state.tensors, **tensors})


FORGERIES = {
    "a value that is not a number": lambda s: other(s, **{"norm.mean": s.tensors["norm.mean"] * torch.nan}),
    "an infinite value": lambda s: other(s, **{"norm.mean": s.tensors["norm.mean"] + torch.inf}),
    "a negative variance": lambda s: other(s, **{"norm.var": -1 - s.tensors["norm.var"]}),
    "another length": lambda s: other(s, **{"norm.mean": s.tensors["norm.mean"][1:]}),
    "another type": lambda s: other(s, **{"norm.mean": s.tensors["norm.mean"].double()}),
    "another tensor": lambda s: other(s, more=torch.zeros(1)),
    "no tensors": lambda s: replace(s, tensors={}),
    "a negative step": lambda s: replace(s, step=-1),
    "a step beyond counting": lambda s: replace(s, step=2**53),
    "a step of another type": lambda s: replace(s, step="5"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_upload_is_refused(api: Api, unharmed: str, sound: bytes, name: str) -> None:
    """Its digest is right, for anyone can compute it."""
    check_problem(upload(api, encode(FORGERIES[name](decode(sound)))), 422, "no state")


def safetensors(metadata: str, tensors: str = "") -> bytes:
    text = f'{{"__metadata__": {metadata}{tensors}}}'.encode()
    return struct.pack("<Q", len(text)) + text


HOSTILE = {
    "rubbish": bytes(range(256)) * 10,
    "a pickle": b"\x80\x04\x95" + b"\0" * 100,
    "a header beyond memory": struct.pack("<Q", 2**63) + b"{}",
    "a header of 200 MB": struct.pack("<Q", 200_000_000) + b"{}",
    "a tensor beyond memory": safetensors(
        "{}", ', "a": {"dtype": "F32", "shape": [99999999999], "data_offsets": [0, 4]}'
    ),
    "no metadata": safetensors("{}"),
    "metadata of another type": safetensors('{"normstream": 5}'),
    "metadata that is no JSON": safetensors('{"normstream": "{"}'),
    "metadata of another shape": safetensors('{"normstream": "[]"}'),
    "another format": safetensors(json.dumps({"normstream": json.dumps({"format": "normstream.state/99"})})),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_upload_is_refused(api: Api, unharmed: str, name: str) -> None:
    check_problem(upload(api, HOSTILE[name]), 422, "no state")


def test_an_upload_of_a_model_that_is_not_here_is_refused(api: Api, unharmed: str, sound: bytes) -> None:
    strange = replace(decode(sound), fingerprint="sha256:0", model="yours")
    check_problem(upload(api, encode(strange)), 409, "'yours' ('sha256:0')", "'tiny'", "'other'")


def test_an_upload_that_cannot_be_written_out_is_refused(api: Api, unharmed: str, sound: bytes) -> None:
    """A lone surrogate is no text that an answer can hold."""
    strange = replace(decode(sound), fingerprint="\ud800", model="\ud800")
    check_problem(upload(api, encode(strange)), 409, r"'\ud800' ('\ud800')")


def test_an_upload_of_another_kind_is_refused(api: Api, unharmed: str, sound: bytes) -> None:
    check_problem(upload(api, sound, kind="application/json"), 415, "application/json", BYTES)
