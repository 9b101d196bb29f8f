"""What is kept of predicted samples, until their labels come."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import coloured
from small_net import SIZE, host_small

from normstream.adaptation import Learning, Request, StateError, initial_state, pack, step, unpack
from normstream.adaptation.preprocessing import Preprocessing
from normstream.adaptation.recipe import Recipe

HOSTED = host_small()
IMAGES = Learning.model_validate({"unlabelled": "images", "replay": {"encoding": "png"}})
JPEG = Learning.model_validate({"unlabelled": "images"})
FEATURES = Learning.model_validate({"unlabelled": "features", "learns": "head", "norm": None})
PIXELS = coloured(["red", "blue", "grey"])


def frames(pixels, preprocessing=HOSTED.preprocessing):
    return torch.from_numpy(preprocessing.normalise(pixels)).permute(0, 3, 1, 2)


@settings(max_examples=50, deadline=None)
@given(mean=st.tuples(*[st.floats(0, 1)] * 3), std=st.tuples(*[st.floats(0.05, 1)] * 3), seed=st.integers(0, 1000))
def test_images_come_back_to_the_last_bit(mean, std, seed):
    hosted = host_small()
    hosted.preprocessing = Preprocessing(input_size=SIZE, mean=mean, std=std)
    pixels = np.random.default_rng(seed).integers(0, 256, (2, *SIZE[1:], 3), dtype=np.uint8)
    assert np.array_equal(
        unpack(IMAGES, hosted, pack(IMAGES, hosted, frames(pixels, hosted.preprocessing), None)), pixels
    )


def test_jpeg_loses_little():
    back = unpack(JPEG, HOSTED, pack(JPEG, HOSTED, frames(PIXELS), None))
    assert 0 < np.abs(back.astype(int) - PIXELS).mean() < 15


def test_values_that_no_pixel_has_are_clipped():
    far = torch.full((1, *SIZE), 1e3)
    assert (unpack(IMAGES, HOSTED, pack(IMAGES, HOSTED, torch.cat([far, -far]), None)) == [[[[255]]], [[[0]]]]).all()


def test_features_come_back():
    (result,) = step(HOSTED, [Request(initial_state(HOSTED, Recipe(learn=FEATURES)), frames(PIXELS))])
    data = pack(FEATURES, HOSTED, frames(PIXELS), result.features)
    assert np.array_equal(unpack(FEATURES, HOSTED, data), result.features.numpy())


def test_nothing_is_kept_unless_a_recipe_asks():
    assert pack(Learning(), HOSTED, frames(PIXELS), None) == [b""] * 3
    with pytest.raises(StateError, match="nothing to be kept"):
        unpack(Learning(), HOSTED, [b"x"])


@pytest.mark.parametrize(
    ("learning", "data", "words"),
    [
        (IMAGES, b"no image", "damaged"),
        (IMAGES, pack(IMAGES, HOSTED, torch.zeros(1, 3, 8, 8), None)[0], "8x8"),
        (IMAGES, pack(IMAGES, HOSTED, frames(PIXELS), None)[0][:100], "damaged"),
        (FEATURES, b"\0" * 39, "39"),
        (FEATURES, np.full(10, np.nan, np.float32).tobytes(), "not finite"),
    ],
)
def test_damaged_bytes_are_refused(learning, data, words):
    with pytest.raises(StateError, match=words):
        unpack(learning, HOSTED, [data])


def test_packing_starts_no_threads():
    """Decoder threads pack beside the thread of tensors; a team of OpenMP threads of their own would slow both."""
    code = """
import os, threading, torch
from normstream.adaptation import Learning, pack
from normstream.adaptation.preprocessing import Preprocessing

class Hosted:
    preprocessing = Preprocessing()

def work():
    before = len(os.listdir("/proc/self/task"))
    pack(Learning.model_validate({"unlabelled": "images"}), Hosted, images, None)
    print(len(os.listdir("/proc/self/task")) - before)
    images + 1
    print(len(os.listdir("/proc/self/task")) - before)

torch.set_num_threads(4)
images = torch.zeros(16, 3, 224, 224)
threading.Thread(target=work).start()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packing, adding = map(int, run.stdout.split())
    assert (packing, adding) == (0, 3)
