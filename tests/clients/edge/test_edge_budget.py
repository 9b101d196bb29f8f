import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from normstream.clients.edge.budget import Allowance, TokenBucket
from normstream.clients.edge.folder import Folder
from normstream.clients.edge.notes import Notes
from normstream.clients.edge.options import Options

HOUR = 3600.0


def bucket(rate=36_000.0, burst=36_000.0):
    return TokenBucket(bytes_per_hour=rate, burst_bytes=burst)


def test_a_full_bucket_lets_anything_pass_until_it_is_half_empty():
    full = bucket()
    assert all(full.take(1000, score, now=0.0) for score in np.linspace(1, 0, 18))


def test_never_more_than_the_rate_and_one_burst():
    generator, tight = np.random.default_rng(0), bucket()
    spent = sum(
        size
        for second in range(5 * 3600)
        if tight.take(size := int(generator.integers(1, 900)), generator.random(), now=float(second))
    )
    assert spent <= 36_000 + 5 * 36_000
    assert spent >= 0.9 * 5 * 36_000  # and what is there is used


def test_when_it_is_tight_the_most_informative_go():
    generator, tight = np.random.default_rng(0), bucket()
    for second in range(3600):  # 1000 bytes a second wanted, 10 a second there
        tight.take(1000, generator.random(), now=float(second))
    sent = [s for t in range(3600, 5 * 3600) if tight.take(1000, s := generator.random(), now=float(t))]
    assert len(sent) == pytest.approx(4 * 36, abs=8)
    assert np.mean(sent) > 0.95


def test_equal_scores_do_not_starve():
    tight = bucket()
    sent = sum(tight.take(1000, 0.5, now=float(second)) for second in range(5 * 3600))
    assert sent >= 0.9 * 5 * 36


def test_after_a_quiet_time_it_is_full_and_not_more():
    tight = bucket()
    while tight.take(1000, 1.0, now=0.0):
        pass
    tight.take(0, 0.0, now=1000 * HOUR)
    assert tight.level == pytest.approx(36_000)


def test_a_clock_set_back_refills_nothing_and_stops_nothing():
    tight = bucket()
    tight.take(30_000, 1.0, now=100 * HOUR)
    tight.take(0, 0.0, now=0.0)
    assert tight.level == pytest.approx(6000)
    tight.take(0, 0.0, now=0.5 * HOUR)
    assert tight.level == pytest.approx(24_000)


def test_it_survives_json():
    one = bucket()
    for second in range(50):
        one.take(1000, second % 7, now=float(second))
    other = TokenBucket(**json.loads(json.dumps(asdict(one))))
    assert other == one
    assert [one.take(500, t % 5, now=t) for t in range(50, 90)] == [
        other.take(500, t % 5, now=t) for t in range(50, 90)
    ]


def test_no_rate_lets_nothing_pass_and_no_limit_everything():
    assert not bucket(0.0, 0.0).take(1, 1.0, now=0.0)
    assert bucket(math.inf, 0.0).take(10**12, 0.0, now=0.0)


def test_what_is_larger_than_the_capacity_is_paid_off_before_the_next():
    full = bucket()
    assert full.take(54_000, 1.0, now=0.0)
    assert full.level == -18_000
    assert TokenBucket(**json.loads(json.dumps(asdict(full)))) == full
    assert not full.take(1, 1.0, now=0.5 * HOUR)
    assert not full.take(54_000, 1.0, now=1.4 * HOUR)
    assert full.take(54_000, 1.0, now=1.5 * HOUR)


@pytest.mark.parametrize("bytes_per_hour", [5_000.0, 80_000.0, 1_000_000.0, 6_000_000.0])
@pytest.mark.parametrize("size", [14_000, 300_000])
def test_a_small_allowance_is_used_and_kept_whatever_the_size_of_a_sample(tmp_path, bytes_per_hour, size):
    budget = Notes.read(Folder(tmp_path), 7, Options(bytes_per_hour=bytes_per_hour)).budget
    generator, days = np.random.default_rng(0), 8
    sent = [t for t in range(0, days * 24 * 3600, 30) if budget.take(size, generator.random(), now=float(t))]
    assert len(sent) * size >= 0.8 * days * 24 * min(bytes_per_hour, 120 * size)
    assert len(sent) * size <= (1 + days * 24) * bytes_per_hour + size
    hours = np.bincount(np.array(sent) // 3600) * size
    assert hours.max() <= max(2 * bytes_per_hour, size + bytes_per_hour)


def test_an_allowance_of_nothing_sends_nothing(tmp_path):
    budget = Notes.read(Folder(tmp_path), 7, Options(bytes_per_hour=0)).budget
    assert not budget.take(1, 1.0, now=0.0)


def test_when_how_much_may_go():
    allowance = Allowance(bytes_per_hour=36_000.0, burst_bytes=10_000.0)
    assert (allowance.available(now=0.0), allowance.lacking_s(50_000, now=0.0)) == (10_000, 0)
    allowance.spend(12_000)
    assert allowance.lacking_s(1, now=0.0) == 201
    assert allowance.lacking_s(50_000, now=100.0) == 1100  # the whole capacity
    allowance.spend(-5_000)
    assert allowance.available(now=100.0) == 4_000
    assert Allowance().lacking_s(10**12, now=0.0) == 0
    assert Allowance(0.0, 0.0).lacking_s(1, now=0.0) == math.inf


def test_what_may_be_kept_and_sent_survives_a_restart(tmp_path):
    options = Options(bytes_per_hour=36_000)
    notes = Notes.read(Folder(tmp_path), 7, options)
    notes.budget.take(5_000, 1.0, now=100.0)
    assert notes.uplink.available(now=200.0) == 36_000
    notes.uplink.spend(7_000)
    notes.write(Folder(tmp_path))
    again = Notes.read(Folder(tmp_path), 7, options)
    assert (again.budget.level, again.budget.filled_at) == (31_000, 100)
    assert (again.uplink.level, again.uplink.filled_at) == (29_000, 200)


@pytest.mark.parametrize("wrong", [{"rate": -1.0}, {"rate": math.nan}, {"burst": -1.0}])
def test_a_wrong_rate_is_refused(wrong):
    with pytest.raises(ValueError, match="give 0 or more"):
        bucket(**wrong)


def test_a_smaller_capacity_holds_for_what_was_saved():
    saved = asdict(bucket())
    assert TokenBucket(**{**saved, "burst_bytes": 100.0}).level == 100.0
