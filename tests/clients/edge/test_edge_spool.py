import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normstream.clients.edge.spool import Spool, Waiting

NOW = 1_800_000_000.0
PAGE = 4096


def sample(name: str, size: int = 1000, at: float = NOW) -> Waiting:
    return Waiting(name, os.urandom(size), at)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.sqlite"


def ids(spool: Spool, count: int = 1000, now: float = NOW) -> list[str]:
    return [each.id for each in spool.best(count, 2**30, now)]


def test_what_was_put_in_comes_out_the_most_useful_first(path):
    spool = Spool(path)
    kept = {name: sample(name) for name in ("low", "high", "middle")}
    for name, usefulness in (("low", 0.1), ("high", 0.9), ("middle", 0.5)):
        spool.put(kept[name], usefulness)
    assert spool.best(10, 2**20, NOW) == [kept["high"], kept["middle"], kept["low"]]
    assert (len(spool), spool.waiting_bytes) == (3, 3 * PAGE)
    spool.remove(["high", "unknown"])
    assert ids(spool) == ["middle", "low"]
    spool.close()


def test_an_id_is_kept_once(path):
    spool = Spool(path)
    spool.put(sample("a"), 1)
    spool.put(sample("a"), 1)
    assert (len(spool), spool.waiting_bytes, spool.dropped) == (1, PAGE, 0)
    spool.close()


def test_a_batch_is_bounded_in_number_and_bytes_but_never_empty(path):
    spool = Spool(path)
    for i in range(5):
        spool.put(sample(str(i), 1000), 1 - i / 10)
    assert len(spool.best(2, 2**20, NOW)) == 2
    assert len(spool.best(9, 2500, NOW)) == 2
    assert len(spool.best(9, 10, NOW)) == 1
    spool.close()


def test_a_full_spool_drops_the_least_useful_and_of_equals_the_oldest(path):
    spool = Spool(path, max_bytes=3 * PAGE)
    spool.put(sample("useless"), 0.01)
    spool.put(sample("old", at=NOW - 60), 0.5)
    spool.put(sample("young"), 0.5)
    spool.put(sample("best"), 0.9)
    assert ids(spool) == ["best", "young", "old"]
    spool.put(sample("better"), 0.8)
    assert ids(spool) == ["best", "better", "young"]
    spool.put(sample("worst"), 0.001)
    assert ids(spool) == ["best", "better", "young"]
    assert spool.dropped == 3
    assert spool.waiting_bytes == 3 * PAGE
    spool.close()


def test_an_hour_halves_what_a_sample_is_worth(path):
    spool = Spool(path, max_bytes=PAGE)
    spool.put(sample("old", at=NOW - 3600), 0.9)
    spool.put(sample("young"), 0.4)
    assert ids(spool) == ["old"]
    spool.put(sample("younger"), 0.5)
    assert ids(spool) == ["younger"]
    spool.close()


def test_samples_that_the_server_would_not_take_any_more_are_dropped(path):
    spool = Spool(path, max_age_s=100)
    spool.put(sample("old", at=NOW - 101), 1)
    spool.put(sample("young", at=NOW - 99), 1)
    assert ids(spool) == ["young"]
    assert (spool.dropped, len(spool)) == (1, 1)
    assert spool.oldest() == NOW - 99
    spool.close()


def test_a_sample_larger_than_the_spool_costs_no_other(path):
    spool = Spool(path, max_bytes=4 * PAGE)
    spool.put(sample("a"), 0.1)
    spool.put(sample("huge", 5 * PAGE), 1)
    assert ids(spool) == ["a"]
    assert spool.dropped == 1
    spool.close()


def test_the_bound_holds_when_the_spool_is_opened_with_a_smaller_one(path):
    spool = Spool(path)
    for i in range(10):
        spool.put(sample(str(i)), i + 1)
    spool.close()
    smaller = Spool(path, max_bytes=2 * PAGE)
    assert ids(smaller) == ["9", "8"]
    smaller.close()


def test_the_file_stays_near_the_bound(path):
    bound = 50 * PAGE
    spool = Spool(path, max_bytes=bound)
    for i in range(1000):
        spool.put(sample(str(i), 3500), 1 + i % 7)
    spool.close()
    assert sum(file.stat().st_size for file in path.parent.iterdir()) < 1.5 * bound


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 30_000)), max_size=30))
def test_it_is_never_over_its_bound_and_loses_nothing_uncounted(tmp_path_factory, puts):
    spool = Spool(tmp_path_factory.mktemp("spool") / "s", max_bytes=10 * PAGE)
    for i, (usefulness, size) in enumerate(puts):
        spool.put(sample(str(i), size), usefulness)
        assert spool.waiting_bytes <= 10 * PAGE
    assert len(spool) + spool.dropped == len(puts)
    assert len(ids(spool)) == len(spool)
    spool.close()


def test_a_bound_that_holds_nothing_is_refused(path):
    with pytest.raises(ValueError, match="max_bytes is 10"):
        Spool(path, max_bytes=10)


def test_a_killed_process_loses_nothing_that_was_put_in(path):
    program = (
        "import sys; from pathlib import Path; from normstream.clients.edge.spool import Spool, Waiting\n"
        "spool = Spool(Path(sys.argv[1]))\n"
        "for i in range(10**9):\n"
        f"    spool.put(Waiting(str(i), bytes(5000), {NOW}), 1.0)\n"
        "    print(i, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True) as process:
        last = 0
        while last < 50:
            last = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        last = max([last, *map(int, process.stdout.read().split("\n")[:-1])])
    spool = Spool(path)
    assert set(map(str, range(last + 1))) <= set(ids(spool, 10**6))
    assert all(each.image == bytes(5000) for each in spool.best(10**6, 2**40, NOW))
    spool.close()


@pytest.mark.parametrize("content", [b"no database" * 1000, None])
def test_a_damaged_file_is_put_aside(path, content):
    if content is None:  # a real one with a page overwritten
        spool = Spool(path)
        for i in range(100):
            spool.put(sample(str(i)), 1)
        spool.close()
        whole = path.read_bytes()
        content = whole[: 2 * PAGE] + bytes(4 * PAGE) + whole[6 * PAGE :]
    path.write_bytes(content)
    spool = Spool(path)
    assert len(spool) == 0
    spool.put(sample("a"), 1)
    assert ids(spool) == ["a"]
    spool.close()
    assert path.with_name(path.name + ".damaged").read_bytes()[:100] == content[:100]


def test_a_disk_that_takes_nothing_costs_the_sample_only(path):
    spool = Spool(path)
    spool.put(sample("a"), 1)
    with closing(sqlite3.connect(path)) as other:
        (pages,) = other.execute("PRAGMA page_count").fetchone()
    spool._database.execute(f"PRAGMA max_page_count = {pages}")  # what a full disk answers
    spool.put(sample("b", 200_000), 1)
    assert (ids(spool), len(spool), spool.dropped) == (["a"], 1, 1)
    spool.close()


def test_threads_may_put_and_take_at_once(path):
    spool = Spool(path)
    taken: list[str] = []

    def put(who: int) -> None:
        for i in range(50):
            spool.put(sample(f"{who}-{i}"), 1)

    threads = [threading.Thread(target=put, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or len(spool):
        batch = ids(spool, 7)
        spool.remove(batch)
        taken += batch
    assert sorted(taken) == sorted(f"{who}-{i}" for who in range(3) for i in range(50))
    assert spool.waiting_bytes == 0
    spool.close()
