"""The snapshots and forks of streams: what is kept, and goes its own way."""

import numpy as np
from servers import Api, check_problem, new_id, tensors
from streams import stepped

from normstream.adaptation import decode


def test_a_snapshot_is_kept_listed_downloaded_uploaded_restored_and_deleted(api: Api) -> None:
    stream = stepped(api, api.make(), 1)
    first = api.post(f"/v1/streams/{stream}/snapshots").json()
    logits = api.logits(stream, tensors(1, 9))
    stepped(api, stream, 2)
    second = api.post(f"/v1/streams/{stream}/snapshots").json()
    assert api.get(f"/v1/streams/{stream}/snapshots").json() == {"snapshots": [second, first]}
    assert (first["stream"], first["model"], first["step"], second["step"]) == (stream, "tiny", 1, 2)

    download = api.get(f"/v1/snapshots/{first['id']}")
    assert download.headers["Content-Type"] == "application/octet-stream"
    assert download.headers["Content-Disposition"] == f'attachment; filename="{first["id"]}.safetensors"'
    assert len(download.content) == first["bytes"]
    assert decode(download.content).step == 1

    copy, kind = new_id("snap"), {"Content-Type": "application/octet-stream"}
    uploads = [api.put(f"/v1/snapshots/{copy}", content=download.content, headers=kind) for _ in range(2)]
    assert [upload.status_code for upload in uploads] == [201, 200]
    assert uploads[0].json() == uploads[1].json()
    assert {**uploads[0].json(), "id": first["id"], "stream": stream, "created_at": first["created_at"]} == first

    other = api.make()
    assert api.post(f"/v1/streams/{other}/restore", json={"snapshot": copy}).json()["step"] == 1
    np.testing.assert_array_equal(api.logits(other, tensors(1, 9)), logits)
    assert api.delete(f"/v1/snapshots/{copy}").status_code == 204
    check_problem(api.get(f"/v1/snapshots/{copy}"), 404)


def test_a_snapshot_outlives_its_stream(api: Api) -> None:
    stream = stepped(api, api.make(), 1)
    state = api.state(stream)
    kept = api.post(f"/v1/streams/{stream}/snapshots").json()
    api.delete(f"/v1/streams/{stream}")
    assert api.get(f"/v1/snapshots/{kept['id']}").content == state
    assert api.get(f"/v1/streams/{stream}/snapshots").json() == {"snapshots": [kept]}
    api.make(stream)
    api.post(f"/v1/streams/{stream}/restore", json={"snapshot": kept["id"]})
    assert api.state(stream) == state


def test_a_fork_begins_with_the_state_and_goes_its_own_way(api: Api) -> None:
    stream = stepped(api, api.make(idle_ttl_s=900), 1, 2)
    before, state = api.show(stream), api.state(stream)
    answer = api.post(f"/v1/streams/{stream}/fork", json={"id": new_id("fork")})
    assert answer.status_code == 201
    fork = answer.json()
    assert {
        **before,
        **{name: fork[name] for name in ("id", "generation", "version", "created_at", "updated_at")},
    } == fork
    assert (fork["step"], fork["version"]) == (2, 1)
    assert fork["generation"] != before["generation"]
    assert api.state(fork["id"]) == state
    stepped(api, fork["id"], 3)
    assert api.show(stream) == before
    assert api.state(stream) == state
    unnamed = api.post(f"/v1/streams/{stream}/fork")
    assert unnamed.status_code == 201
    assert unnamed.json()["id"].startswith(stream)
