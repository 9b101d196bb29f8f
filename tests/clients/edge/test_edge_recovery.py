"""What an edge client's folder brings back, and what does not end it."""

import math
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from cloud import problem
from surroundings import answers, photo, until

from normstream.clients.edge.clock import Clock
from normstream.clients.edge.folder import Folder
from normstream.clients.edge.local import EMA
from normstream.clients.edge.status import Counters


def test_a_start_without_network_is_adapted(start, server, publisher):
    client = start()
    parameters = publisher.publish(1)
    until(lambda: client.status().version == "a.1")
    client.step([photo(i) for i in range(3)])
    before = client.status()
    client.close()
    server.away = True
    again = start(options={"top_k": 1000, "first_contact_s": 0.0})
    assert again.step([photo()])[0].version == "a.1"
    assert answers(again, parameters, photo())
    assert again.status().counters.seen == before.counters.seen + 2
    assert again.status().counters.updates == 1
    assert again.status().last_contact_at is None
    assert again._selector.images == before.counters.seen + 2
    server.away = False
    publisher.publish(2, delta=True)  # which builds on what was kept
    again._updater.backoff.uniform = lambda low, high: 0.0
    until(lambda: again.status().version == "a.2", 70)


def test_an_edge_that_starts_adapted_goes_on_adapting_at_once(start, publisher):
    client = start(options={"local": EMA()})
    publisher.publish(1)
    until(lambda: client.status().version == "a.1")
    client.close()
    again = start(options={"local": EMA()})
    assert again._in_use.version == "a.1"
    assert again._in_use.network._pace.due  # no trial's rest is left


@pytest.mark.parametrize("damage", [b"", b"rubbish", b"hmac-sha256=00\nrubbish"])
def test_a_damaged_update_in_the_folder_is_passed_over(start, publisher, tmp_path, damage):
    client = start()
    publisher.publish(1)
    until((tmp_path / "edge/update").exists)
    client.close()
    (tmp_path / "edge/update").write_bytes(damage)
    again = start()
    assert again.step([photo()])[0].version in {None, "a.1"}
    until(lambda: again.status().version == "a.1")  # fetched again


def test_a_damaged_model_in_the_folder_is_fetched_again(start, package, tmp_path):
    start().close()
    (model,) = (tmp_path / "edge/packages").rglob("model.onnx")
    model.write_bytes(b"rubbish")
    client = start(options={"top_k": 1000})
    assert answers(client, package.source, photo())


def test_damaged_notes_are_begun_anew(start, server, tmp_path):
    client = start()
    client.step([photo()])
    client.close()
    for name in ("state.json", "status.json"):
        (tmp_path / "edge" / name).write_bytes(
            b'{"counters": {"seen": "many", "excluded": 3}, "selector": 1, "budget": []}'
        )
    server.away = True  # or the sample that waits might be sent, and counted, meanwhile
    assert start().status().counters == Counters()


def test_what_the_edge_has_seen_is_kept_over_a_restart(start, publisher, tmp_path, convolutions_package):
    client = start(options={"local": EMA(0.1, 0.5)})
    client.step([photo(i) for i in range(4)])
    parameters = publisher.publish(1)
    until(lambda: client.status().version == "a.1")
    client.step([photo(9)])
    running = client._in_use.statistics
    client.close()
    again = start(options={"local": EMA(0.1, 0.5, share=math.inf), "top_k": 1000})
    assert again.status().version == "a.1"
    for name in ("mean", "var"):
        np.testing.assert_array_equal(getattr(again._in_use.statistics, name), getattr(running, name))
    for seed in range(5):
        assert answers(again, again._in_use.statistics.mixed_into(parameters, 0.5), photo(seed))
    again.close()
    content = (tmp_path / "edge/statistics").read_bytes()
    assert len(content) < 2**20
    for damaged in (b"", content[:-40], b"rubbish", running.packed(convolutions_package)[:200]):
        (tmp_path / "edge/statistics").write_bytes(damaged)
        anew = start(options={"local": EMA(0.1, 0.5)})
        assert not np.array_equal(anew._in_use.statistics.mean, running.mean)
        assert anew.step([photo()])
        anew.close()


def test_what_the_edge_has_seen_is_written_now_and_then(start, tmp_path):
    client = start(options={"local": EMA()})
    path = tmp_path / "edge/statistics"
    for _ in range(3):
        client.step([photo()])
        client._write()
    assert not path.exists()
    client._diary.statistics_at -= 61
    client._write()
    first = path.read_bytes()
    client.step([photo()])
    client._write()
    assert path.read_bytes() == first


def test_a_full_disk_ends_nothing(start, tmp_path, monkeypatch):
    client = start()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Folder, "_write", full)
    client._diary.written_at = -math.inf
    assert client.step([photo()])
    until(lambda: client._diary.written_at > 0)
    assert client.step([photo()])


def test_a_spool_that_cannot_be_opened_ends_nothing(start, server, tmp_path):
    start().close()
    (tmp_path / "edge/spool.sqlite").unlink()
    (tmp_path / "edge/spool.sqlite").mkdir()
    server.instead.extend([problem(503)] * 100)
    client = start()
    assert client.step([photo()])
    until(lambda: client.status().waiting == 1)
    server.instead.clear()
    client._uploader.backoff.uniform = lambda low, high: 0.0
    until(lambda: client.status().waiting == 0, 70)
    assert len(server.samples) == 1
    until(lambda: "samples wait in memory alone" in (client.status().problem or ""))


def test_a_clock_that_jumps_ends_nothing(start, server):
    now = [1_800_000_000.0]
    client = start(clock=Clock(lambda: now[0], time.monotonic))
    for jump in (0, -1e9, 2e9, -1e5):
        now[0] += jump
        assert client.step([photo()])
    assert client.status().counters.seen == 4


def test_an_edge_that_is_killed_goes_on_where_it_was(start, server, publisher, package, tmp_path):
    client = start(edge="killed")
    client.close()
    server.instead.extend([problem(503)] * 10_000)  # what is uploaded waits
    program = (
        "import sys, numpy as np\n"
        "from normstream.clients.edge.client import EdgeClient, Options\n"
        "from normstream.clients.edge.selection import Criteria\n"
        "options = Options(criteria=Criteria(unreliable=100, uninformative=0, redundant=2), linger_s=0)\n"
        "client = EdgeClient(sys.argv[1], 'killed', sys.argv[2], options=options)\n"
        "while True:\n"
        "    prediction, = client.step([np.random.default_rng().integers(0, 256, (40, 50, 3), dtype=np.uint8)])\n"
        "    print(prediction.version, len(client._spool), flush=True)\n"
    )
    publisher.edge = "killed"
    command = [sys.executable, "-c", program, server.url, tmp_path / "edge"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        publisher.publish(1)
        version, waiting = "None", 0
        while version == "None" or waiting < 20:
            version, waiting = process.stdout.readline().split()
            waiting = int(waiting)
        until((tmp_path / "edge/update").exists)
        process.send_signal(signal.SIGKILL)
    server.away = True
    again = start(edge="killed")
    assert again.step([photo()])[0].version == "a.1"
    assert again.status().waiting >= waiting


def test_a_full_spool_drops_samples_and_nothing_else(start, server):
    client = start(options={"spool_bytes": 2**16})
    server.away = True
    for i in range(60):
        assert client.step([photo(i)])
    until(lambda: not client._keeper.queue.unfinished_tasks)
    until(lambda: client.status().counters.excluded["spool"] >= 60 - 2**16 // 4096)
    assert client.status().waiting_bytes <= 2**16
    assert client.status().waiting + client.status().counters.excluded["spool"] == 60
