"""When an edge asks for updates; what it does with them is in test_edge_client.py."""

import math

import pytest
from cloud import Answer, Cloud, problem, sign, update_body

from normstream.clients.edge.backoff import Backoff
from normstream.clients.edge.clock import Clock
from normstream.clients.edge.folder import Folder, Identity
from normstream.clients.edge.link import Link
from normstream.clients.edge.membership import Membership
from normstream.clients.edge.preprocessing import normalise
from normstream.clients.edge.runtime import Runtime
from normstream.clients.edge.status import Counters
from normstream.clients.edge.updates import Updater

KEY = "k" * 43


class Now:
    s = 0.0


@pytest.fixture
def now():
    return Now()


@pytest.fixture
def used():
    return []


@pytest.fixture
def updater(server, convolutions_package, tmp_path, now, used):
    clock = Clock(lambda: 1.8e9 + now.s, lambda: now.s)
    link = Link(server.url)
    membership = Membership(link, Folder(tmp_path), Identity("gate", KEY), clock)
    runtime = Runtime(convolutions_package)
    yield Updater(
        membership,
        convolutions_package,
        Folder(tmp_path),
        Counters(),
        renew=lambda: convolutions_package,
        build=lambda _, parameters: runtime.updated(parameters),
        swap=lambda _, update: used.append(update.tag),
        recent=list,
        clock=clock,
        backoff=Backoff(uniform=lambda _, high: high),
        wait_s=0.0,
    )
    link.close()


def publish(server: Cloud, package, tag: str = "a.1", base: tuple[str, bytes] | None = None) -> None:
    offsets = {name: (value * 0.01).astype("float32") for name, value in package.source.items()}
    parameters = {name: value + offsets[name] for name, value in package.source.items()}
    probe = Runtime(package, parameters).logits(normalise(package.reference, package.manifest.preprocessing))
    manifest = {"model": "tiny", "fingerprint": package.manifest.fingerprint}
    body, _ = update_body(manifest, offsets, probe, edge="gate", tag=tag, base=base)
    server.publish(tag, body, sign(KEY, body))


def test_a_server_that_answers_at_once_is_asked_every_few_seconds(server, updater):
    assert [updater.turn() for _ in range(3)] == [5, 5, 5]
    assert server.asked == [{"precision": "float16", "wait": "0"}] * 3


def test_after_an_update_it_asks_again_at_once(server, updater, convolutions_package, used):
    publish(server, convolutions_package)
    assert updater.turn() == 0
    assert used == ["a.1"]
    assert updater.turn() == 5
    assert server.asked[-1]["since"] == "a.1"


def test_an_update_that_comes_again_is_used_once(server, updater, convolutions_package, used):
    publish(server, convolutions_package)
    assert updater.turn() == 0
    server.publish("again", *server.offer[1:])  # by somebody on the wire
    assert [updater.turn() for _ in range(3)] == [5, 5, 5]
    assert used == ["a.1"]
    assert (updater.counters.updates, updater.problem) == (1, None)


def test_a_difference_that_gives_something_else_makes_it_ask_for_the_whole(server, updater, convolutions_package, used):
    """Two sides may call two states by one name, after a failure of the server's Redis."""
    publish(server, convolutions_package)
    updater.turn()
    publish(server, convolutions_package, "a.2", base=("a.1", bytes(len(updater.held.offsets))))
    assert updater.turn() == 1
    assert "digest" in updater.problem
    publish(server, convolutions_package, "a.3")
    assert updater.turn() == 0
    assert "since" not in server.asked[-1]
    assert used == ["a.1", "a.3"]


def test_an_hour_without_network_costs_few_attempts_and_no_update(server, updater, convolutions_package, now, used):
    updater.turn()
    server.away = True
    pauses = []
    while now.s < 3600:
        pauses.append(updater.turn())
        now.s += pauses[-1]
    assert pauses[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert len(pauses) < 70
    publish(server, convolutions_package)
    server.away = False
    updater.turn()
    assert used == ["a.1"]
    assert updater.backoff.failures == 0


def test_an_update_that_stays_bad_is_asked_for_less_and_less(server, updater, used):
    server.publish("a.1", b"rubbish", "hmac-sha256=00")
    assert [updater.turn() for _ in range(7)] == [1, 2, 4, 8, 16, 32, 60]
    assert updater.counters.rejected == 7
    assert used == []


def test_what_the_server_cannot_send_is_said_when_it_begins_and_when_it_ends(server, updater, monkeypatch, caplog):
    affine = Cloud.affine
    monkeypatch.setattr(Cloud, "affine", lambda *_: problem(409, "the stream was made with other weights"))
    membership = updater.membership
    for pause_s in (1, 2, 4):
        assert updater.turn() == pause_s
        membership.call(lambda identity: membership.link.upload(identity, [], {"taken_at": {}}))  # which passes
        assert membership.problem is None
        assert "made with other weights" in updater.withheld.reason
    monkeypatch.setattr(Cloud, "affine", affine)
    assert updater.turn() == 5
    assert updater.withheld.reason is None
    begins, ends = [record.message for record in caplog.records]
    assert begins.startswith("the server has no update for this edge")
    assert "made with other weights" in begins
    assert ends == "the server has updates for this edge again"


@pytest.mark.parametrize(
    ("answer", "pause_s"),
    [
        (problem(429, "busy", **{"Retry-After": "20"}), 21),
        (problem(422, "since is no tag"), 1),
        (problem(409, "cannot be sent"), 1),
        (Answer(503), 1),
        (Answer(200, b"<html>log in</html>", {"Content-Type": "text/html"}), 1),
        (problem(410, "deleted"), math.inf),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Answer) else "",
)
def test_other_answers_make_it_wait(server, updater, used, monkeypatch, answer, pause_s):
    monkeypatch.setattr(Cloud, "affine", lambda *_: answer)
    assert updater.turn() == pause_s
    assert updater.membership.halted is math.isinf(pause_s)
    assert used == []
    assert updater.counters.rejected == 0  # none of them is an update
