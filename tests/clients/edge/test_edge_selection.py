import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normstream.clients.edge import selection
from normstream.clients.edge.prediction import Likelihoods
from normstream.clients.edge.selection import Criteria, Reason, Selector, upper_bound

GOLDEN = Path(__file__).parents[2] / "golden" / "cema_edge_exclusion.npz"


def batches(number=4, size=16, classes=10, seed=0, scale=3.0):
    generator = np.random.default_rng(seed)
    return [(scale * generator.standard_normal((size, classes))).astype(np.float32) for _ in range(number)]


def select(logits, selector, criteria):
    return selection.select(Likelihoods.of(logits), selector, criteria)


def kept(verdicts):
    return [verdict.reason is None for verdict in verdicts]


def test_the_published_exclusion():
    golden = np.load(GOLDEN)
    classes = int(golden["n_class"])
    criteria = Criteria(
        unreliable=float(golden["ent_high_margin"]),
        uninformative=float(golden["ent_low_margin"]),
        redundant=float(golden["d_margin"]),
        scale=float(golden["coeff"]),
        warm_up=int(golden["warm_up"]),
    )
    selector = Selector()
    for t in range(6):
        verdicts, selector = select(golden[f"logits_{t}"], selector, criteria)
        by_entropy = [verdict.reason in {None, Reason.REDUNDANT} for verdict in verdicts]
        np.testing.assert_array_equal(by_entropy, golden[f"keep_entropy_{t}"])
        np.testing.assert_array_equal(kept(verdicts), golden[f"keep_{t}"])
        assert upper_bound(selector, classes, criteria) == pytest.approx(float(golden[f"entropy_margin_{t}"]), abs=1e-6)
        np.testing.assert_allclose(selector.sent, golden[f"history_probs_{t}"], atol=1e-6)


def test_open_bounds_send_everything():
    criteria = Criteria(unreliable=1e9, uninformative=0, redundant=1.1)
    selector = Selector()
    for logits in batches():
        verdicts, selector = select(logits, selector, criteria)
        assert all(kept(verdicts))


@given(st.integers(0, 1000), st.floats(0.05, 0.9), st.floats(0.05, 0.9))
def test_a_wider_entropy_bound_excludes_no_more(seed, one, other):
    logits, *_ = batches(seed=seed)
    narrow, wide = sorted((one, other))
    few, _ = select(logits, Selector(), Criteria(unreliable=narrow))
    many, _ = select(logits, Selector(), Criteria(unreliable=wide))
    assert all(not a or b for a, b in zip(kept(few), kept(many), strict=True))


def test_each_reason():
    certain, unsure, new = np.full((3, 10), -5.0, np.float32)
    certain[0], unsure[:], new[3] = 40.0, 0.0, 0.0
    same = np.full(10, -5.0, np.float32)
    same[4] = 0.0
    _, selector = select(same[np.newaxis], Selector(), Criteria())
    verdicts, _ = select(np.stack([certain, unsure, same, new]), selector, Criteria(redundant=0.2))
    assert [verdict.reason for verdict in verdicts] == [Reason.UNINFORMATIVE, Reason.UNRELIABLE, Reason.REDUNDANT, None]


def test_what_is_not_finite_is_unreliable_and_leaves_no_trace():
    good, *_ = batches()
    bad = good.copy()
    bad[3, 2], bad[5, 1] = np.nan, np.inf
    verdicts, selector = select(bad, Selector(), Criteria())
    assert verdicts[3].reason is verdicts[5].reason is Reason.UNRELIABLE
    _, expected = select(np.delete(good, [3, 5], axis=0), Selector(), Criteria())
    assert selector == expected
    verdicts, after = select(np.full((2, 10), np.nan, np.float32), selector, Criteria())
    assert not any(kept(verdicts))
    assert after == selector


def test_the_state_survives_json():
    selector = Selector()
    first, second, *rest = batches(size=20)
    for logits in (first, second):
        _, selector = select(logits, selector, Criteria())
    restored = Selector(**json.loads(json.dumps(asdict(selector))))
    for logits in rest:
        verdicts, selector = select(logits, selector, Criteria())
        again, restored = select(logits, restored, Criteria())
        assert verdicts == again


def test_nothing_given_changes():
    selector, (logits, *_) = Selector(), batches()
    before = logits.copy()
    select(logits, selector, Criteria())
    assert selector == Selector()
    np.testing.assert_array_equal(logits, before)


def test_scores_are_between_0_and_1_and_grow_with_entropy_where_nothing_was_sent():
    verdicts, _ = select(batches()[0], Selector(), Criteria(unreliable=1e9))
    assert all(0 <= verdict.score <= 1 for verdict in verdicts)
    logits = np.zeros((3, 10), np.float32)
    logits[:, 0] = (6, 5, 4)
    scores = [verdict.score for verdict in select(logits, Selector(), Criteria())[0]]
    assert scores == sorted(scores)
    assert scores[0] < scores[2]


def test_the_mean_entropy_follows_after_a_long_life():
    criteria = Criteria(horizon=100)
    calm, *_ = batches(size=50, scale=6.0)
    unsure, *_ = batches(size=50, scale=1.0)
    selector = Selector()
    for _ in range(200):
        _, selector = select(calm, selector, criteria)
    bound = upper_bound(selector, 10, criteria)
    for _ in range(6):
        _, selector = select(unsure, selector, criteria)
    assert upper_bound(selector, 10, criteria) > 1.5 * bound


def test_a_warm_up_of_certainty_divides_by_nothing():
    logits = np.full((40, 10), -1e4, np.float32)
    logits[:, 0] = 0
    _, selector = select(logits, Selector(), Criteria())
    verdicts, _ = select(batches()[0], selector, Criteria())
    assert any(kept(verdicts))


@pytest.mark.parametrize(
    "wrong",
    [{"unreliable": 0}, {"uninformative": -0.1}, {"memory": 1.0}, {"warm_up": 0}, {"horizon": 5}, {"scale": np.nan}],
)
def test_a_wrong_criterion_is_refused_by_its_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Criteria(**wrong)
