"""Scores: what is counted of labels, and what is kept of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normstream.service.scores import WINDOW, Judged, Scores, Tally

NAMES = st.sampled_from(["cat", "dog", "Größe", "a\\b", '"'])
LABELS = st.lists(
    st.builds(Judged, label=NAMES, answer=st.none() | NAMES, confidence=st.floats(0, 1, width=32)), max_size=30
)


def same(first: Scores, second: Scores) -> bool:
    return list(first.classes.items()) == list(second.classes.items()) and np.array_equal(first.window, second.window)


@given(LABELS)
def test_scores_are_kept_whole(labels: list[Judged]) -> None:
    scores = Scores().counting(labels)
    assert same(Scores.unpack(scores.pack()), scores)


@given(LABELS, LABELS)
def test_labels_may_come_in_any_number_of_requests(first: list[Judged], second: list[Judged]) -> None:
    assert same(Scores().counting(first).counting(second), Scores().counting([*first, *second]))


@given(LABELS)
def test_classes_add_up(labels: list[Judged]) -> None:
    total = Scores().counting(labels).total
    assert total.labelled == len(labels)
    assert total.scored == sum(each.answer is not None for each in labels)
    assert total.correct == sum(each.answer == each.label for each in labels)


def test_counting_leaves_what_there_was() -> None:
    scores = Scores().counting([Judged("cat", "cat", 0.9)])
    scores.counting([Judged("cat", "dog", 0.9)])
    assert scores.classes == {"cat": Tally(1, 1, 1)}
    assert len(scores.window) == 1


def test_an_image_without_an_answer_is_counted_and_not_scored() -> None:
    scores = Scores().counting([Judged("cat"), Judged("cat", "cat", 0.5), Judged("dog", "cat", 0.5)])
    assert scores.classes == {"cat": Tally(2, 1, 1), "dog": Tally(1, 1, 0)}
    assert scores.total.accuracy == scores.recent_accuracy == 0.5


def test_the_window_holds_the_last_answers() -> None:
    scores = Scores().counting([Judged("cat", "cat", 0.9)] * WINDOW)
    scores = scores.counting([Judged("cat", "dog", 0.8)] * (WINDOW // 4))
    assert len(scores.window) == WINDOW
    assert scores.recent_accuracy == 0.75
    assert scores.total.accuracy == pytest.approx(0.8)


def test_the_calibration_error_is_that_of_the_paper() -> None:
    # Two bins: 4 answers near 0.9 of which 2 are right, 2 near 0.3 of which 1 is right.
    answers = [(0.9, True), (0.9, False), (0.88, True), (0.92, False), (0.3, True), (0.28, False)]
    scores = Scores().counting(Judged("cat", "cat" if right else "dog", confidence) for confidence, right in answers)
    assert scores.calibration_error == pytest.approx(4 / 6 * abs(0.5 - 0.9) + 2 / 6 * abs(0.5 - 0.29), abs=1e-6)


def test_one_who_is_sure_and_right_is_calibrated() -> None:
    assert Scores().counting([Judged("cat", "cat", 1.0)] * 3).calibration_error == 0
    assert Scores().calibration_error is None
