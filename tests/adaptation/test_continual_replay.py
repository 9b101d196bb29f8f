"""The memory: what stays in it, in how many bytes, by which randomness."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import coloured
from safetensors.torch import load, save

from normstream.adaptation.continual.pixels import decode, encode, jitter
from normstream.adaptation.continual.replay import Replay, kept_bytes


def offered(replay, samples, labels=None, seed=0, at_once=1, width=0):
    """A memory that was offered the samples, some at a time."""
    memory = replay.initial()
    labels = labels or [0] * len(samples)
    for turn, start in enumerate(range(0, len(samples), at_once)):
        part = slice(start, start + at_once)
        rows = torch.arange(start, start + len(samples[part])).float().unsqueeze(1).expand(-1, width)
        rng = np.random.default_rng((seed, turn))
        memory = replay.take(memory, samples[part], torch.tensor(labels[part]), rows, rng)
    return memory


def kept(memory):
    return [piece.numpy().tobytes() for piece in memory["data"].split(memory["lengths"].tolist())]


def numbered(count):
    return [number.to_bytes(4, "little") for number in range(count)]


def numbers(memory):
    return [int.from_bytes(data, "little") for data in kept(memory)]


@pytest.mark.parametrize("at_once", [1, 7])
def test_the_reservoir_is_uniform(at_once):
    replay = Replay(keep="images", capacity=10)
    counts = Counter()
    for seed in range(160):
        counts.update(numbers(offered(replay, numbered(40), seed=seed, at_once=at_once)))
    expected = 160 * 10 / 40
    chi_square = sum((counts[number] - expected) ** 2 for number in range(40)) / (expected * 0.75)
    assert chi_square < 75  # 39 degrees of freedom: less than one in a thousand exceeds 72.


def test_the_ring_keeps_the_newest_of_each_class():
    replay = Replay(keep="images", policy="ring", capacity=6)
    labels = [0] * 10 + [1] * 10 + [2] * 10
    memory = offered(replay, numbered(30), labels)
    assert sorted(numbers(memory)) == [8, 9, 18, 19, 28, 29]
    assert Counter(memory["labels"].tolist()) == {0: 2, 1: 2, 2: 2}


def test_a_rare_class_keeps_its_samples_in_the_ring():
    replay = Replay(keep="images", policy="ring", capacity=6)
    memory = offered(replay, numbered(41), [1] + [0] * 40)
    assert Counter(memory["labels"].tolist()) == {0: 5, 1: 1}


@pytest.mark.parametrize("policy", ["reservoir", "ring"])
@given(
    sizes=st.lists(st.integers(1, 60), max_size=40),
    capacity=st.integers(0, 12),
    max_bytes=st.integers(0, 200),
    at_once=st.integers(1, 9),
    width=st.integers(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_bounds_hold_and_tensors_agree(policy, sizes, capacity, max_bytes, at_once, width):
    replay = Replay(keep="images", policy=policy, capacity=capacity, max_bytes=max_bytes)
    samples = [bytes([index]) * size for index, size in enumerate(sizes)]
    memory = offered(replay, samples, [index % 3 for index in range(len(sizes))], at_once=at_once, width=width)
    assert len(memory["lengths"]) <= capacity
    assert len(memory["data"]) + 4 * width * len(memory["lengths"]) <= max_bytes
    assert memory["seen"] == len(sizes)
    for row, data in enumerate(kept(memory)):
        number = data[0]
        assert data == samples[number]
        assert memory["labels"][row] == number % 3
        assert memory["logits"][row].tolist() == [number] * width
        assert memory["outputs"][row] == width


def test_where_bytes_run_out_the_reservoir_stays_uniform():
    # Ten samples of 4 bytes in 20: five stay, and later ones do not get in more easily than earlier ones.
    counts = Counter()
    for seed in range(160):
        counts.update(numbers(offered(Replay(keep="images", capacity=10, max_bytes=20), numbered(40), seed=seed)))
    early, late = (sum(counts[number] for number in part) for part in (range(20), range(20, 40)))
    assert sum(counts.values()) == 160 * 5
    assert abs(early - late) < 4 * np.sqrt(800)


@pytest.mark.parametrize("seed", range(20))
def test_where_bytes_run_out_places_go_whichever_sample_does(seed):
    memory = offered(Replay(keep="images", capacity=10, max_bytes=20), numbered(6), seed=seed)
    assert memory["places"] == len(kept(memory)) == 5


def test_a_sample_too_large_is_not_kept_and_drives_nothing_out():
    memory = offered(Replay(keep="images", max_bytes=10), [b"small", b"x" * 11])
    assert kept(memory) == [b"small"]


@pytest.mark.parametrize("policy", ["reservoir", "ring"])
@given(widths=st.lists(st.integers(1, 12), min_size=1, max_size=30), length=st.integers(1, 30), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_the_bound_holds_while_logits_widen(policy, widths, length, seed):
    """A new class gives every row of logits one more number."""
    replay, rng = Replay(keep="images", policy=policy, capacity=10, max_bytes=100), np.random.default_rng(seed)
    memory = replay.initial()
    for width in sorted(widths):
        memory = replay.take(memory, [b"x" * length], torch.tensor([width]), torch.ones(1, width), rng)
        assert kept_bytes(memory) == len(memory["data"]) + 4 * memory["logits"].numel() <= 100
        assert len(memory["lengths"]) <= memory["places"]


@pytest.mark.parametrize("policy", ["reservoir", "ring"])
def test_a_memory_that_is_above_its_bound_comes_under_it(policy):
    """As one may be from before logits counted; and though all go that are too large by now, there is room for more."""
    before = Replay(keep="images", policy=policy, capacity=4)
    replay, rng = before.model_copy(update={"max_bytes": 60}), np.random.default_rng(0)
    memory = before.take(before.initial(), [b"x" * 50] * 4, torch.zeros(4).long(), torch.ones(4, 8), rng)
    for _ in range(20):
        memory = replay.take(memory, [b"small"], torch.tensor([0]), torch.ones(1, 8), rng)
    assert kept(memory) == [b"small"]


def test_logits_of_fewer_outputs_are_filled_up():
    replay = Replay(keep="images")
    rng = np.random.default_rng(0)
    memory = replay.take(replay.initial(), [b"a"], torch.tensor([0]), torch.ones(1, 2), rng)
    memory = replay.take(memory, [b"b"], torch.tensor([1]), torch.ones(1, 3), rng)
    assert memory["logits"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert memory["outputs"].tolist() == [2, 3]


@pytest.mark.parametrize("policy", ["reservoir", "ring"])
def test_it_goes_on_the_same_after_a_reload(policy):
    replay = Replay(keep="images", policy=policy, capacity=5)
    rng = [np.random.default_rng(1) for _ in range(2)]
    memory = offered(replay, numbered(12), list(range(4)) * 3)
    copies = [
        replay.take(each, numbered(30)[20:], torch.arange(10), torch.zeros(10, 0), its)
        for each, its in zip((memory, load(save(memory))), rng, strict=True)
    ]
    assert all(torch.equal(copies[0][name], copies[1][name]) for name in memory)


def test_draws_are_different_samples_with_their_own_rows():
    replay = Replay(keep="images", capacity=20, batch=8)
    memory = offered(replay, numbered(20), [number % 3 for number in range(20)], width=1)
    drawn = replay.draw(memory, np.random.default_rng(0))
    found = [int.from_bytes(data, "little") for data in drawn.data]
    assert len(set(found)) == 8
    assert drawn.labels.tolist() == [number % 3 for number in found]
    assert drawn.logits[:, 0].tolist() == found


def test_a_draw_takes_what_there_is():
    replay = Replay(keep="images", batch=8)
    assert replay.draw(replay.initial(), np.random.default_rng(0)) is None
    assert len(replay.draw(offered(replay, numbered(3)), np.random.default_rng(0)).data) == 3


def test_nothing_is_kept_unless_it_is_asked():
    assert kept(offered(Replay(), numbered(3))) == []


def test_png_gives_back_every_pixel_and_jpeg_nearly():
    images = coloured(["red", "grey"])
    assert (decode([encode(image, "png") for image in images], (16, 16)) == images).all()
    smooth = np.full_like(images, 100)
    assert np.abs(decode([encode(image, "jpeg") for image in smooth], (16, 16)).astype(int) - 100).max() <= 3


@pytest.mark.parametrize("data", [b"", b"no image", encode(np.zeros((8, 16, 3), np.uint8), "png")])
def test_an_image_of_another_size_is_refused(data):
    with pytest.raises(ValueError, match="none of the network's size"):
        decode([data], (16, 16))


def test_jitter_moves_and_mirrors():
    images = coloured(["red"] * 64)
    moved = jitter(images, np.random.default_rng(0))
    assert moved.shape == images.shape
    assert (moved == jitter(images, np.random.default_rng(0))).all()
    # A shift of none, one or two pixels each way (16 / 8), or the mirror image of it.
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    for index, image in enumerate(moved):
        crops = [padded[index, down : down + 16, right : right + 16] for down in range(5) for right in range(5)]
        assert any((image == crop).all() or (image == crop[:, ::-1]).all() for crop in crops)
