import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from normstream.clients.edge.budget import TokenBucket

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


def test_more_than_the_capacity_never_passes():
    assert not bucket().take(36_001, 1.0, now=0.0)


@pytest.mark.parametrize("wrong", [{"rate": -1.0}, {"rate": math.nan}, {"burst": -1.0}])
def test_a_wrong_rate_is_refused(wrong):
    with pytest.raises(ValueError, match="give 0 or more"):
        bucket(**wrong)


def test_a_smaller_capacity_holds_for_what_was_saved():
    saved = asdict(bucket())
    assert TokenBucket(**{**saved, "burst_bytes": 100.0}).level == 100.0
