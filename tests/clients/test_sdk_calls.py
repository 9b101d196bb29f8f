import json
import re
from pathlib import Path
from urllib.parse import unquote

import examples
import httpx
import numpy as np
import pytest

from normstream.clients import Conflict, ConnectionFailed, InvalidArgument, NotFound, calls
from normstream.clients.call import Repeat, settle

REST = Path(__file__).parents[2] / "docs" / "rest.md"
REQUEST = httpx.Request("GET", "http://server/v1/models")
EVERY_CALL = {
    "models": calls.models(),
    "model": calls.model("{name}"),
    "recipes": calls.recipes(),
    "methods": calls.methods(),
    "create_stream": calls.create_stream(),
    "streams": calls.streams(),
    "stream": calls.stream("{id}"),
    "delete_stream": calls.delete_stream("{id}"),
    "predict": calls.predict("{id}", b"image"),
    "reset": calls.reset("{id}"),
    "snapshot": calls.snapshot("{id}"),
    "snapshots": calls.snapshots("{id}"),
    "download_snapshot": calls.download_snapshot("{sid}"),
    "upload_snapshot": calls.upload_snapshot("{sid}", b""),
    "delete_snapshot": calls.delete_snapshot("{sid}"),
    "restore": calls.restore("{id}", "snap"),
    "fork": calls.fork("{id}"),
    "events": calls.events("{id}"),
    "label": calls.label("{id}", {"9f1c2b7a5d3e4f60-0": "zebra"}),
    "scores": calls.scores("{id}"),
    "edges": calls.edges(),
    "edge": calls.edge("{id}"),
    "delete_edge": calls.delete_edge("{id}"),
    "ready": calls.ready(),
}


def body(call):
    assert call.headers["Content-Type"] == "application/json"
    return json.loads(call.body)


def test_every_call_of_the_contract_is_made():
    """`/healthz` is for whoever runs the server, and edges speak for themselves (`normstream.clients.edge`)."""
    documented = set(re.findall(r"`(GET|POST|PUT|DELETE) (/[^`?]*)", REST.read_text()))
    of_edges = {each for each in documented if each[1].startswith("/v1/edges/{id}/") or "/package" in each[1]}
    of_edges.add(("POST", "/v1/edges"))
    assert len(of_edges) == 5
    expected = documented - of_edges - {("GET", "/healthz")}
    assert {(call.method, unquote(call.path)) for call in EVERY_CALL.values()} == expected


def test_only_a_snapshot_and_a_probe_are_not_repeatable():
    cautious = {name: call.repeat for name, call in EVERY_CALL.items() if call.repeat is not Repeat.ALWAYS}
    assert cautious == {"snapshot": Repeat.UNSENT, "ready": Repeat.NEVER}


def test_create_says_what_is_given():
    call = calls.create_stream("gate-3", model="m", recipe=examples.RECIPE, idle_ttl_s=60)
    assert body(call) == {"id": "gate-3", "model": "m", "recipe": examples.RECIPE, "idle_ttl_s": 60}


def test_create_leaves_defaults_to_the_server():
    assert body(calls.create_stream("gate-3")) == {"id": "gate-3", "recipe": "alpha_bn"}


@pytest.mark.parametrize("make", [calls.create_stream, lambda: calls.fork("gate-3")])
def test_made_up_ids_are_legal_and_differ(make):
    ids = {body(make())["id"] for _ in range(50)}
    assert len(ids) == 50
    assert all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", made_up) for made_up in ids)


def test_an_empty_id_is_not_made_up():
    assert body(calls.create_stream(""))["id"] == ""


def test_pages():
    assert calls.streams().query == {"limit": "100"}
    assert calls.streams(after="a", limit=5).query == {"limit": "5", "after": "a"}


@pytest.mark.parametrize("images", [b"file", np.zeros((1, 2, 2, 3), np.uint8)])
def test_predict(images):
    call = calls.predict("gate-3", images, adapt=False, top_k=3)
    assert call.path == "/v1/streams/gate-3/predict"
    assert call.query == {"adapt": "false", "top_k": "3", "output": "topk"}
    assert call.headers["Accept"] == "application/json"
    assert re.fullmatch("[0-9a-f]{32}", call.headers["Idempotency-Key"])


def test_label():
    call = calls.label("gate-3", {"9f1c2b7a5d3e4f60-0": "zebra"}, learn=False)
    assert call.path == "/v1/streams/gate-3/labels"
    assert call.query == {"learn": "false"}
    assert body(call) == {"labels": [{"sample": "9f1c2b7a5d3e4f60-0", "label": "zebra"}]}
    assert re.fullmatch("[0-9a-f]{32}", call.headers["Idempotency-Key"])


def test_labels_teach_by_default():
    assert calls.label("a", {"b": "c"}).query == {"learn": "true"}


def test_predict_adapts_by_default():
    assert calls.predict("a", b"x").query == {"adapt": "true", "top_k": "5", "output": "topk"}


@pytest.mark.parametrize("output", ["probs", "logits"])
def test_arrays_are_asked_for_as_arrays(output):
    call = calls.predict("a", b"x", output=output)
    assert call.headers["Accept"] == "application/x-npy"
    assert call.query["output"] == output


def test_each_predict_has_its_own_key():
    assert len({calls.predict("a", b"x").headers["Idempotency-Key"] for _ in range(10)}) == 10


def test_a_key_of_ones_own():
    assert calls.predict("a", b"x", idempotency_key="frame-7").headers["Idempotency-Key"] == "frame-7"


@pytest.mark.parametrize("key", ["", "a b", "a\r\nHost: b", "é", "x" * 256])
def test_wrong_keys_are_refused(key):
    with pytest.raises(InvalidArgument, match="1 to 255 visible"):
        calls.predict("a", b"x", idempotency_key=key)
    with pytest.raises(InvalidArgument, match="1 to 255 visible"):
        calls.label("a", {"b": "c"}, idempotency_key=key)


def test_a_wrong_output_is_refused():
    with pytest.raises(InvalidArgument, match="output is 'labels'; give 'topk'"):
        calls.predict("a", b"x", output="labels")


@pytest.mark.parametrize("name", ["a/b", "a b", "a?b", "a#b", "%2e", "ü"])
def test_an_id_stays_one_part_of_the_path(name):
    path = calls.stream(name).path
    assert path.count("/") == 3
    assert unquote(path) == f"/v1/streams/{name}"
    assert re.fullmatch(r"[A-Za-z0-9/%._~-]+", path)


@pytest.mark.parametrize("name", ["", ".", ".."])
@pytest.mark.parametrize(
    "make",
    [
        calls.stream,
        calls.delete_stream,
        calls.delete_snapshot,
        calls.model,
        calls.fork,
        calls.scores,
        calls.edge,
        lambda name: calls.label(name, {"a": "b"}),
        lambda name: calls.predict(name, b"x"),
    ],
)
def test_an_id_that_would_name_another_path_is_refused(make, name):
    with pytest.raises(InvalidArgument, match="cannot name"):
        make(name)


def test_a_recipe_with_nan_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        calls.create_stream("a", recipe={"norm": {"alpha": float("nan")}})


def test_upload_sends_the_bytes():
    call = calls.upload_snapshot("snap-1", b"\x00\x01")
    assert (call.method, call.body) == ("PUT", b"\x00\x01")
    assert call.headers["Content-Type"] == "application/octet-stream"


def test_snapshots_are_read():
    (snapshot,) = settle(
        calls.snapshots("a"), httpx.Response(200, json={"snapshots": [examples.SNAPSHOT]}), repeated=False
    )
    assert snapshot.bytes == 168900


def test_an_answer_is_settled():
    assert settle(calls.download_snapshot("s"), httpx.Response(200, content=b"state"), repeated=False) == b"state"


def test_a_refusal_is_settled():
    with pytest.raises(NotFound):
        settle(calls.stream("a"), httpx.Response(404), repeated=True)


def test_no_answer_is_settled():
    with pytest.raises(ConnectionFailed, match=r"no answer to GET http://server/v1/models: ReadTimeout; is the"):
        settle(calls.models(), httpx.ReadTimeout("", request=REQUEST), repeated=False)


def test_a_password_is_not_told():
    request = httpx.Request("GET", "http://me:secret@server:80/v1/models")
    with pytest.raises(ConnectionFailed, match="GET http://server/v1/models") as raised:
        settle(calls.models(), httpx.ConnectError("refused", request=request), repeated=False)
    assert "secret" not in str(raised.value)


def test_a_repeated_delete_that_finds_nothing_is_done():
    call, gone = calls.delete_stream("a"), httpx.Response(404)
    assert settle(call, gone, repeated=True) is None
    with pytest.raises(NotFound):
        settle(call, gone, repeated=False)


def test_a_repeated_fork_that_finds_itself_is_looked_up():
    call = calls.fork("a")
    lookup = settle(call, httpx.Response(409), repeated=True)
    assert lookup.path == f"/v1/streams/{body(call)['id']}"
    with pytest.raises(Conflict):
        settle(call, httpx.Response(409), repeated=False)


def test_a_repeated_fork_to_a_given_id_may_be_anothers():
    with pytest.raises(Conflict):
        settle(calls.fork("a", "b"), httpx.Response(409), repeated=True)
