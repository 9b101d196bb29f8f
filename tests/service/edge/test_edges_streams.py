"""The streams of edges: whose they are, what teaches them, and when they end."""

import time
from collections.abc import Callable

import torch
from edges import BATCH, SLOW_S, EdgeApi, crop, crops, joined, learnt, opened, taught
from servers import Api, Live, check_problem, new_id, tensors

from normstream.adaptation import ModelSpec, decode


def test_a_stream_of_another_recipe_is_not_taken_over(api: Api) -> None:
    name = new_id("e")
    api.make(f"edge-{name}", "ema")
    check_problem(EdgeApi(api, name).registered, 409, f"edge-{name}")
    check_problem(api.get(f"/v1/edges/{name}"), 404)


def test_a_group_learns_from_all_and_all_get_the_same(api: Api) -> None:
    group = new_id("fog")
    first, second = EdgeApi(api, group=group), EdgeApi(api, group=group, key="o" * 40)
    assert first.stream == second.stream == f"group-{group}"
    first.upload(crops(*"ab"))
    assert second.upload(crops(*"ab")).json() == {"accepted": 2, "duplicates": 0, "pending": 4}
    learnt(first, 2)
    assert [each.show()["samples"]["used"] for each in (first, second)] == [2, 2]
    mine, offsets, _ = opened(first.ask())
    theirs, same, _ = opened(second.ask(), "o" * 40)
    assert (mine["edge"], theirs["edge"]) == (first.id, second.id)
    assert (mine["tag"], offsets) == (theirs["tag"], same)
    assert api.show(first.stream)["step"] == 1


def test_a_recipe_without_a_teacher_learns_from_no_samples_yet_feeds_an_edge(api: Api) -> None:
    edge = EdgeApi(api, recipe={"norm": {"name": "bn1"}, "update": {"name": "tent", "lr": 0.01}})
    check_problem(edge.upload(crops("a")), 422, "without a teacher")
    assert edge.upload(report={"seen": 1}).status_code == 202
    before, source, _ = opened(edge.ask())
    assert api.step(edge.stream, tensors(4)).status_code == 200
    after, moved, _ = opened(edge.ask(since=before["tag"]))
    assert after["tag"] != before["tag"]
    assert (joined(source, moved) if after["codec"] == "delta" else moved) != source


def test_a_taught_stream_predicts_and_learns_from_no_prediction(api: Api) -> None:
    stream = api.make(recipe=taught())
    answer = api.step(stream, tensors(2))
    check_problem(answer, 422, "query.adapt", "adapt=false")
    assert api.step(stream, tensors(2), adapt=False).status_code == 200
    before = api.state(stream)
    copy = api.post(f"/v1/streams/{stream}/fork").json()["id"]
    assert api.state(copy) == before
    assert api.post(f"/v1/streams/{stream}/reset").status_code == 200
    assert api.state(stream) == before


TAKEN_AT = time.time() - 100  # which the replay buffer remembers


def taught_lesson(edge: EdgeApi, number: int) -> bytes:
    """The state of an edge's stream after a lesson from samples that are the same for each edge."""
    used = edge.show()["samples"]["used"]
    samples = [(new_id("sample"), crop(number * BATCH + place)) for place in range(BATCH)]
    taken_at = {name: TAKEN_AT + number + place / 10 for place, (name, _) in enumerate(samples)}
    assert edge.upload(samples, {"taken_at": taken_at}).json()["accepted"] == BATCH
    learnt(edge, used + BATCH)
    return edge.api.state(edge.stream)


def test_lessons_go_along_whole_with_forks_and_snapshots_and_a_reset_forgets_them(api: Api) -> None:
    """Parameters and optimisers of student and teacher, statistics, replay."""
    edge = EdgeApi(api)
    source = api.state(edge.stream)
    first, second = taught_lesson(edge, 0), taught_lesson(edge, 1)
    was, now = decode(source).tensors, decode(second).tensors
    assert {name for name in was if torch.equal(was[name], now[name])} == {"update.teacher.fingerprint"}
    assert {"update.affine", "update.optimizer.velocity", "update.replay.images"} < was.keys()
    assert {"update.teacher.affine", "update.teacher.optimizer.velocity", "norm.mean"} < was.keys()
    snapshot = api.post(f"/v1/streams/{edge.stream}/snapshots").json()["id"]

    twin = new_id("e")
    assert api.post(f"/v1/streams/{edge.stream}/fork", json={"id": f"edge-{twin}"}).status_code == 201
    fork = EdgeApi(api, twin)
    assert api.state(fork.stream) == second
    third = taught_lesson(edge, 2)
    assert api.state(fork.stream) == second != third
    assert taught_lesson(fork, 2) == third

    assert api.post(f"/v1/streams/{edge.stream}/restore", json={"snapshot": snapshot}).status_code == 200
    assert api.state(edge.stream) == second
    assert taught_lesson(edge, 2) == third

    assert api.post(f"/v1/streams/{edge.stream}/reset").status_code == 200
    assert api.state(edge.stream) == source
    assert taught_lesson(edge, 0) == first
    assert api.state(fork.stream) == third


def test_snapshots_of_a_taught_stream_need_its_teacher(
    api: Api, edge: EdgeApi, serve: Callable[..., Live], tiny_models: tuple[ModelSpec, ModelSpec]
) -> None:
    state = api.state(edge.stream)
    path, kind = f"/v1/snapshots/{new_id('snap')}", {"Content-Type": "application/octet-stream"}
    with Api(serve(models=tiny_models[:1]).url, timeout=SLOW_S) as poor:
        check_problem(poor.put(path, content=state, headers=kind), 409, "'other'")
        check_problem(poor.post(f"/v1/streams/{edge.stream}/reset"), 422, "'other'")
        assert poor.step(edge.stream, tensors(2), adapt=False).status_code == 200
    assert api.put(path, content=state, headers=kind).status_code == 201
    sid = path.rpartition("/")[2]
    assert api.post(f"/v1/streams/{edge.stream}/restore", json={"snapshot": sid}).status_code == 200


def test_an_edge_that_is_sent_nothing_is_heard_of(
    api: Api, edge: EdgeApi, serve: Callable[..., Live], tiny_models: tuple[ModelSpec, ModelSpec]
) -> None:
    other_weights = tiny_models[1].model_copy(update={"name": "tiny"})
    assert edge.show()["last_seen"] is None
    with Api(serve(models=(other_weights,)).url, timeout=SLOW_S) as retrained:
        held = f"{edge.tag.partition('.')[0]}.0"
        for since in (edge.tag, held):  # to one that is up to date it is said too: there will be nothing newer
            asked = retrained.get(f"/v1/edges/{edge.id}/affine", params={"since": since}, headers=edge.headers)
            check_problem(asked, 409, "its weights or preprocessing differ")
    shown = edge.show()
    assert shown["last_seen"] is not None
    assert (shown["acknowledged"], shown["versions_behind"]) == (held, 1)


def test_the_stream_goes_with_its_last_edge(api: Api) -> None:
    group = new_id("fog")
    first, second = EdgeApi(api, group=group), EdgeApi(api, group=group)
    first.upload(crops("a"))
    second.upload(crops("b"))
    wrong = {"Authorization": "Bearer wrong"}
    check_problem(api.delete(f"/v1/edges/{first.id}", headers=wrong), 403)
    assert api.delete(f"/v1/edges/{first.id}", headers=first.headers).status_code == 204
    assert second.upload(report={}).json()["pending"] == 1
    assert api.delete(f"/v1/edges/{second.id}").status_code == 204
    check_problem(api.get(f"/v1/streams/{second.stream}"), 404)
    for call in (api.get, api.delete):
        check_problem(call(f"/v1/edges/{second.id}"), 404)
    check_problem(second.ask(), 404)
    check_problem(second.upload(crops("c")), 404)


def test_a_stream_that_was_deleted_is_made_anew_for_its_edge(api: Api, edge: EdgeApi) -> None:
    tag = edge.tag
    edge.upload(crops("a"))
    assert api.delete(f"/v1/streams/{edge.stream}").status_code == 204
    shown = edge.show()
    assert (shown["tag"], shown["samples"]["received"]) == (None, 0)
    header, _, _ = opened(edge.ask(since=tag))
    assert header["codec"] == "full"
    assert header["tag"].partition(".")[0] != tag.partition(".")[0]
    assert edge.upload(crops("a")).json()["accepted"] == 1
