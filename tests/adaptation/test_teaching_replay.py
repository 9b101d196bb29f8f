"""The replay buffer of a taught stream."""

from dataclasses import replace

import torch
from teachers import NOW, TEACHERS, of, same, samples, taught

from normstream.adaptation import (
    admit,
    decode,
    encode,
    initial_state,
    teach,
)
from normstream.adaptation import replay as buffers
from normstream.adaptation.replay import Kept


def kept(*sizes, first=0.0):
    return [Kept(bytes([n + 1]) * size, first + n) for n, size in enumerate(sizes)]


def test_a_buffer_gives_back_what_was_put_in():
    empty = buffers.initial(8192, torch.device("cpu"))
    assert buffers.unpacked(empty) == []
    content = kept(2000, 1, 3000)
    tensors = buffers.packed(content, empty)
    assert buffers.unpacked(tensors) == content
    assert buffers.damage(tensors) is None
    assert {name: (value.shape, value.dtype) for name, value in tensors.items()} == {
        name: (value.shape, value.dtype) for name, value in empty.items()
    }


def test_a_buffer_of_no_bytes_keeps_nothing(small):
    teacher, recipe = TEACHERS["small"], of(replay_bytes=0)
    state, reports = taught(small, teacher, recipe, [4, 4])
    assert reports[-1].replay_images == reports[-1].replayed == 0
    assert same(admit(decode(encode(state)), small, recipe, teacher), state)


def test_the_oldest_goes_first_and_bytes_are_bounded():
    content = kept(3000, 3000, 3000)
    assert buffers.bounded(content[::-1], 6500, 0.0) == content[1:]
    assert buffers.bounded(content, 100_000, 1.0) == content[1:]
    assert buffers.bounded(kept(9000), 8192, 0.0) == []
    many = buffers.bounded(kept(*[1] * 20), 8192, 0.0)
    assert len(many) == 8  # as many as there are slots
    assert buffers.unpacked(buffers.packed(many, buffers.initial(8192, torch.device("cpu")))) == many


def test_samples_leave_with_age(small):
    teacher, recipe = TEACHERS["small"], of(replay_age_s=100)
    state = teach(small, teacher, initial_state(small, recipe, teacher), samples(4), NOW).state
    young = teach(small, teacher, state, samples(1, first=10, taken_at=NOW + 50), NOW + 50)
    assert (young.report.replayed, young.report.replay_images) == (2, 5)
    old = teach(small, teacher, young.state, samples(1, first=20, taken_at=NOW + 101), NOW + 101)
    assert (old.report.replayed, old.report.replay_images) == (1, 2)
    late = teach(small, teacher, young.state, samples(1, first=20), NOW + 1000)
    assert (late.report.used, late.report.replayed, late.report.replay_images) == (1, 0, 0)


def test_a_sample_from_the_future_ages_from_now(small):
    teacher, recipe = TEACHERS["small"], of(replay_age_s=100)
    state = initial_state(small, recipe, teacher)
    state = teach(small, teacher, state, samples(2, taken_at=NOW + 1e9), NOW).state
    assert teach(small, teacher, state, samples(1, taken_at=NOW + 101), NOW + 101).report.replay_images == 1


def test_what_is_replayed_is_drawn_by_the_step():
    content = kept(*[10] * 50)
    assert buffers.drawn(content, 8, seed=1) == buffers.drawn(content, 8, seed=1)
    assert buffers.drawn(content, 8, seed=1) != buffers.drawn(content, 8, seed=2)
    assert len(set(buffers.drawn(content, 50, seed=3))) == 50
    assert buffers.drawn([], 8, seed=0) == []


def test_a_kept_image_that_was_tampered_with_is_passed_over(small):
    teacher = TEACHERS["small"]
    state, _ = taught(small, teacher, of(), [4])
    scrambled = state.tensors | {"update.replay.images": 255 - state.tensors["update.replay.images"]}
    outcome = teach(small, teacher, replace(state, tensors=scrambled), samples(4, first=9), NOW)
    assert outcome.report.replayed == 0
    assert not outcome.report.discarded
