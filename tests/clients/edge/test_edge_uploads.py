import math
import socket
import threading
from pathlib import Path

import pytest
from cloud import Answer, Cloud, cloud, problem

from normstream.clients.edge.backoff import LONGEST_RETRY_AFTER_S, Backoff
from normstream.clients.edge.budget import Allowance
from normstream.clients.edge.clock import Clock
from normstream.clients.edge.folder import Folder, Identity
from normstream.clients.edge.link import Link, Unreachable, Unwelcome
from normstream.clients.edge.membership import Membership
from normstream.clients.edge.spool import Spool, Waiting
from normstream.clients.edge.status import Counters
from normstream.clients.edge.uploads import Uploader
from normstream.clients.errors import InvalidArgument

START = 1_800_000_000.0
KEY = "k" * 43


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> Clock:
        return Clock(lambda: START + self.now, lambda: self.now)


@pytest.fixture
def server():
    with cloud() as running:
        yield running


@pytest.fixture
def hands():
    return Hands()


@pytest.fixture
def link(server):
    link = Link(server.url, timeout_s=5)
    yield link
    link.close()


@pytest.fixture
def membership(tmp_path, link, hands):
    return Membership(link, Folder(tmp_path), Identity("gate", KEY), hands.clock())


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "spool.sqlite")
    yield spool
    spool.close()


@pytest.fixture
def uploader(membership, spool, hands):
    backoff = Backoff(uniform=lambda _, high: high)
    return Uploader(membership, spool, Counters(), lambda: {"seen": 5}, hands.clock(), backoff, batch=4)


def put(spool: Spool, *names: str, at: float = START) -> None:
    for i, name in enumerate(names):
        spool.put(Waiting(name, name.encode(), at), 1 - i / 100)


def test_the_pauses_double_up_to_a_minute_with_full_jitter():
    backoff = Backoff(uniform=lambda low, high: low + high)
    assert [backoff.pause_s() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    backoff.succeed()
    assert backoff.pause_s() == 1
    assert backoff.pause_s(retry_after_s=7) == 9
    assert backoff.pause_s(retry_after_s=math.inf) == 4 + LONGEST_RETRY_AFTER_S
    backoff.failures = 10**6
    assert backoff.pause_s() == 60
    assert all(0 <= Backoff(failures=3).pause_s() <= 8 for _ in range(100))


def test_a_full_batch_goes_at_once_and_registers_the_edge(server, spool, uploader, membership):
    put(spool, *"abcde")
    assert uploader.turn() == 0
    assert server.calls == ["POST /v1/edges", "POST /v1/edges/gate/samples"]
    assert server.edges["gate"] == {"id": "gate", "key": KEY, "recipe": "cema"}
    assert server.samples == {name: name.encode() for name in "abcd"}
    assert server.reports == [{"seen": 5, "taken_at": dict.fromkeys("abcd", START)}]
    assert len(spool) == 1
    assert uploader.counters.uploaded == 4
    assert membership.identity.hosted == "tiny"
    assert membership.last_contact_at == START


def test_a_part_of_a_batch_goes_when_it_has_waited(server, spool, uploader, hands):
    uploader.turn()  # the first report
    put(spool, "a")
    assert 0 < uploader.turn() <= uploader.linger_s
    assert server.samples == {}
    hands.now += uploader.linger_s
    assert uploader.turn() == 0
    assert list(server.samples) == ["a"]


def test_a_quiet_edge_reports_once_a_minute(server, uploader, hands):
    while hands.now < 600:
        hands.now += max(0.001, uploader.turn())
    assert server.batches == [[]] * len(server.batches)
    assert 10 <= len(server.batches) <= 11


def test_the_most_useful_go_first(server, spool, uploader):
    for name, usefulness in (("low", 0.1), ("high", 0.9), ("middle", 0.5), ("lower", 0.05), ("higher", 0.95)):
        spool.put(Waiting(name, b"x", START), usefulness)
    uploader.turn()
    assert server.batches == [["higher", "high", "middle", "low"]]


def test_an_hour_without_network_costs_no_sample_and_few_attempts(server, spool, uploader, hands):
    uploader.turn()
    server.away = True
    seen = len(server.calls)
    attempts = 0
    while hands.now < 3600:
        if hands.now // 60 * 4 > attempts:  # the camera goes on
            put(spool, f"s-{attempts}", at=START + hands.now)
            attempts += 1
        hands.now += min(1.0, max(0.001, uploader.turn()))
    assert len(server.calls) == seen
    waiting = len(spool)
    assert waiting == attempts
    assert uploader.backoff.failures < 80
    server.away = False
    hands.now += 60
    while len(spool) >= uploader.batch:
        hands.now += uploader.turn()
    assert len(server.samples) == waiting - len(spool)
    assert uploader.counters.uploaded == len(server.samples)
    assert uploader.backoff.failures == 0
    assert uploader.counters.unwanted == spool.dropped == 0


def test_new_samples_do_not_shorten_a_pause(server, spool, uploader, hands):
    server.away = True
    put(spool, *"abcd")
    assert uploader.turn() == 1
    server.away = False
    hands.now += 0.5
    assert uploader.turn() == 0.5
    assert server.calls == []
    hands.now += 0.5
    assert uploader.turn() == 0
    assert len(server.samples) == 4


def test_the_server_says_how_long_to_wait(server, spool, uploader, hands):
    put(spool, *"abcd")
    server.instead.append(problem(429, "the queue is full", **{"Retry-After": "30"}))
    assert uploader.turn() == 31
    hands.now += 31
    assert uploader.turn() == 0
    assert len(server.samples) == 4


@pytest.mark.parametrize(
    "answer",
    [
        Answer(500),
        Answer(503, b"<html>", {"Content-Type": "text/html"}),
        Answer(200, b"<html>please log in</html>", {"Content-Type": "text/html"}),
        Answer(302, b"", {"Location": "http://portal/"}),
        Answer(403, b"<html>a proxy</html>", {"Content-Type": "text/html"}),
        Answer(202, b"[]", {"Content-Type": "application/json"}),
        Answer(202, b"no json", {"Content-Type": "application/json"}),
    ],
    ids=lambda answer: f"{answer.status}-{answer.body[:8].decode()}",
)
def test_what_is_not_the_servers_own_answer_costs_nothing(server, spool, uploader, hands, answer):
    put(spool, *"abcd")
    server.instead.append(answer)
    assert uploader.turn() == 1
    assert len(spool) == 4
    assert not uploader.membership.halted
    hands.now += 1
    uploader.turn()
    assert len(server.samples) == 4


def test_a_bad_sample_costs_none_of_its_neighbours(server, spool, uploader, hands):
    server.bad_samples = {b"b"}
    put(spool, *"abcd")
    while len(spool):
        hands.now += uploader.turn()
        assert hands.now < 100
    assert sorted(server.samples) == ["a", "c", "d"]
    assert (uploader.counters.uploaded, uploader.counters.unwanted) == (3, 1)
    put(spool, *"efgh")
    hands.now += 60
    uploader.turn()
    assert server.batches[-1] == list("efgh")


def test_a_bad_report_costs_no_sample(server, spool, uploader, hands, caplog):
    uploader.report = lambda: {"seen": -5}
    server.bad_samples = {b"b"}
    put(spool, *"abcdefghij")
    while len(spool) >= uploader.batch:
        hands.now += uploader.turn()
        assert hands.now < 100
    hands.now += uploader.linger_s + 60
    while len(spool):
        hands.now += uploader.turn()
        assert hands.now < 200
    assert sorted(server.samples) == list("acdefghij")
    assert (uploader.counters.uploaded, uploader.counters.unwanted) == (9, 1)
    assert caplog.text.count("will not have this edge's report") == 1
    assert len([call for call in server.calls if call.endswith("/samples")]) <= 12
    uploader.report = lambda: {"seen": 5}
    hands.now += 600
    uploader.turn()
    assert server.reports[-1]["seen"] == 5


def test_a_bad_report_that_travels_alone_is_left_out_too(server, uploader, hands, caplog):
    uploader.report = lambda: {"seen": -5}
    while hands.now < 590:
        hands.now += max(uploader.turn(), 0.1)
    assert caplog.text.count("will not have this edge's report") == 1
    assert server.reports == [{"taken_at": {}}] * 10  # once a minute the server hears that the edge lives
    assert len([call for call in server.calls if call.endswith("/samples")]) == 11
    assert uploader.counters.unwanted == 0
    uploader.report = lambda: {"seen": 5}
    while hands.now < 700:
        hands.now += max(uploader.turn(), 0.1)
    assert server.reports[-1]["seen"] == 5


@pytest.mark.parametrize("status", [401, 403, 410])
def test_an_edge_that_is_refused_says_so_and_tries_no_more(server, spool, uploader, caplog, status):
    put(spool, *"abcd")
    server.instead.append(problem(status, "not you"))
    assert uploader.turn() == math.inf
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "not you" in caplog.text
    assert uploader.membership.halted
    calls = len(server.calls)
    with pytest.raises(Unwelcome):
        uploader.membership.call(lambda _: None)
    assert uploader.turn() > 0
    assert len(server.calls) == calls
    assert len(spool) == 4
    assert KEY not in caplog.text


def test_an_id_that_another_edge_has_is_refused(server, spool, uploader):
    server.edges["gate"] = {"id": "gate", "key": "another"}
    assert uploader.turn() == math.inf
    assert "another key" in uploader.membership.problem


def test_an_edge_that_the_server_forgot_registers_again(server, spool, uploader, hands):
    uploader.turn()
    server.edges.clear()
    put(spool, *"abcd")
    hands.now += uploader.turn()
    uploader.turn()
    assert server.calls.count("POST /v1/edges") == 2
    assert len(server.samples) == 4


def test_a_lost_answer_sends_the_samples_again_under_the_same_ids(server, spool, uploader, hands, monkeypatch):
    put(spool, *"abcd")
    take = Cloud.take

    def lose(self, headers, body):
        take(self, headers, body)
        monkeypatch.setattr(Cloud, "take", take)
        self.instead.append(Answer(502))
        return take(self, headers, body)

    monkeypatch.setattr(Cloud, "take", lose)
    hands.now += uploader.turn()
    uploader.turn()
    assert [sorted(batch) for batch in server.batches] == [list("abcd")] * 2
    assert uploader.counters.uploaded == 4


def test_problems_are_logged_once_until_all_is_well_again(server, uploader, hands, caplog):
    server.away = True
    for _ in range(5):
        hands.now += uploader.turn()
    assert len(caplog.records) == 1
    server.away = False
    uploader.turn()
    assert "answers again" in caplog.records[-1].message
    assert uploader.membership.problem is None


def test_after_a_time_without_a_server_no_more_is_sent_in_an_hour(server, spool, uploader, hands):
    uploader.uplink = Allowance(bytes_per_hour=6000.0, burst_bytes=1000.0)
    uploader.report_every_s = 300.0
    for number in range(60):  # ten hours' worth has gathered, the last the most useful
        spool.put(Waiting(f"{number:02}", bytes(1000), START), 0.5 + number / 1000)
    sent: list[tuple[float, int]] = []
    while len(spool):
        hands.now += uploader.turn()
        arrived = len(server.samples) - sum(count for _, count in sent)
        sent.append((hands.now, arrived))
        assert hands.now < 11 * 3600
    assert max(sum(count for at, count in sent if start <= at < start + 3600) for start, _ in sent) <= 7
    assert hands.now >= 9 * 3600
    assert list(server.samples) == [f"{number:02}" for number in reversed(range(60))]
    assert len(server.reports) >= hands.now / 300  # which go on meanwhile


def test_a_batch_is_as_large_as_may_be_sent(server, spool, uploader, hands):
    uploader.uplink = Allowance(bytes_per_hour=3600.0, burst_bytes=25.0)
    uploader.linger_s = 0.0
    put(spool, *(each * 10 for each in "abcd"))
    uploader.turn()
    assert server.batches == [["a" * 10, "b" * 10]]
    assert uploader.turn() == 5
    hands.now += 5
    uploader.turn()
    assert server.batches[1:] == [["c" * 10]]


def test_what_was_sent_counts_whether_it_arrived_or_not(server, spool, uploader, hands, link):
    uploader.uplink = Allowance(bytes_per_hour=3600.0, burst_bytes=100.0)
    uploader.turn()
    put(spool, *"abcd")
    server.away = True  # after it has heard all
    uploader.turn()
    assert uploader.uplink.level == 96
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        uploader.membership.link = Link(f"http://127.0.0.1:{nobody.getsockname()[1]}")
        hands.now += 60
        assert uploader.turn() > 0
        uploader.membership.link.close()
    assert uploader.uplink.available(START + hands.now) == 100
    assert len(spool) == 4


def test_a_server_without_room_says_so_once(server, spool, uploader, hands, membership, caplog):
    uploader.turn()
    put(spool, *"abcd")
    server.instead.extend([problem(429, "512 samples wait", **{"Retry-After": "10"})] * 2)
    for pause_s in (11, 12):
        assert uploader.turn() == pause_s
        hands.now += pause_s
        membership.call(lambda identity: membership.link.ask(identity, None, "float16", 0))  # which passes
        assert "512 samples wait" in uploader.full.reason
        assert membership.problem is None
    uploader.turn()
    assert len(server.samples) == 4
    assert uploader.full.reason is None
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "the server has no room for samples now",
        "the server takes samples again",
    ]


def test_a_report_alone_wants_no_room(server, spool, uploader, hands):
    server.instead.append(problem(429, "256 requests are waiting"))
    hands.now += uploader.turn()
    assert uploader.full.reason is None
    put(spool, *"abcd")
    server.instead.append(problem(429, "512 samples wait"))
    hands.now += uploader.turn()
    assert uploader.full.reason
    spool.remove("abcd")  # as what is too old goes
    hands.now += uploader.turn()
    assert uploader.full.reason is None


def test_what_never_went_costs_nothing_of_the_allowance(server, spool, uploader, membership, hands):
    uploader.uplink = Allowance(bytes_per_hour=3600.0, burst_bytes=100.0)
    server.edges["gate"] = {"key": "another"}  # so that it cannot be registered
    put(spool, *"abcd")
    uploader.turn()
    assert not server.samples
    assert uploader.uplink.level == 100


def test_bytes_are_counted_both_ways(server, link):
    identity = Identity("gate", KEY)
    assert link.register(identity) == ("tiny", True)
    up, down = link.bytes_up, link.bytes_down
    assert up > len(KEY)
    assert down > len(KEY)
    link.upload(identity, [Waiting("a", bytes(10_000), START)], {"taken_at": {"a": START}})
    assert 10_000 < link.bytes_up - up < 10_600


def test_a_call_that_waits_is_broken_off(server, link):
    identity = Identity("gate", KEY)
    link.register(identity)
    outcome = []

    def wait():
        try:
            link.ask(identity, None, "float16", 60)
        except Unreachable as error:
            outcome.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not server.asked:
        pass
    link.abort()
    thread.join(5)
    assert not thread.is_alive()
    assert len(outcome) == 1


def test_nobody_listens(tmp_path, hands):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        link = Link(f"http://127.0.0.1:{probe.getsockname()[1]}")
        with pytest.raises(Unreachable):
            link.register(Identity("gate", KEY))
        link.close()


@pytest.mark.parametrize("address", ["no address", "http://[", "http://127.0.0.1:99999", "ftp://there"])
def test_an_address_that_is_none_is_unreachable_or_refused(address):
    with pytest.raises((Unreachable, ValueError)):
        Link(address)._send("GET", "/", {})


def test_the_identity_is_kept_for_its_owner_only(tmp_path: Path):
    folder = Folder(tmp_path / "a" / "b")
    assert folder.identity() is None
    identity = Identity("gate", KEY, "tiny", {"norm": {"name": "tbr"}}, "fleet", "tiny", "sha256:1")
    folder.save_identity(identity)
    assert folder.identity() == identity
    assert (folder.path / "edge.json").stat().st_mode & 0o777 == 0o600
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert KEY not in repr(identity)


def test_a_damaged_identity_is_not_replaced(tmp_path: Path):
    folder = Folder(tmp_path)
    (tmp_path / "edge.json").write_text('{"edge": "gate"')
    with pytest.raises(InvalidArgument, match="restore it"):
        folder.identity()


def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path: Path):
    folder = Folder(tmp_path)
    folder.write("state.json", {"a": 1})
    (tmp_path / ".state.json.new").write_text('{"a": ')
    assert folder.read("state.json") == {"a": 1}
    folder.write("state.json", {"a": 2})
    assert folder.read("state.json") == {"a": 2}
