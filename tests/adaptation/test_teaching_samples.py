"""Uploaded samples: which are taken, and how each network sees them."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from small_net import SIZE
from teachers import (
    NOW,
    TEACHERS,
    compressed,
    of,
    picture,
    samples,
)

from normstream.adaptation import (
    Preprocessing,
    Sample,
    SampleError,
    initial_state,
    teach,
)
from normstream.adaptation.samples import decoded


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("PNG", mode) for mode in ("RGB", "L", "RGBA", "P", "I;16")),
        *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
        *(("WEBP", mode) for mode in ("RGB", "RGBA")),
    ],
)
def test_formats_and_modes(kind, mode):
    image = Image.open(io.BytesIO(picture())).convert(mode)
    found = decoded(Sample("s", compressed(image, kind), NOW), Preprocessing(input_size=SIZE))
    assert found.mode == "RGB"
    assert found.size == (16, 16)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xd8\xff", picture()[:-200], picture(kind="JPEG")[:200], b"GIF89a" + bytes(50), picture(side=33)],
    ids=["empty", "only a head", "cut png", "cut jpeg", "gif", "too large"],
)
def test_a_damaged_sample_is_named_before_anything_is_learnt(small, data):
    teacher = TEACHERS["small"]
    state = initial_state(small, of(), teacher)
    before = {name: value.clone() for name, value in state.tensors.items()}
    batch = [*samples(2), Sample("the bad one", data, NOW)]
    with pytest.raises(SampleError, match="the bad one"):
        teach(small, teacher, state, batch, NOW)
    assert all(torch.equal(state.tensors[name], value) for name, value in before.items())


@pytest.mark.parametrize("taken_at", [math.nan, math.inf])
def test_a_sample_has_a_time(small, taken_at):
    teacher = TEACHERS["small"]
    with pytest.raises(SampleError, match="taken_at"):
        teach(small, teacher, initial_state(small, of(), teacher), [Sample("s", picture(), taken_at)], NOW)


@pytest.mark.parametrize("count", [0, 5])
def test_a_lesson_is_of_at_most_a_batch(small, count):
    teacher = TEACHERS["small"]
    with pytest.raises(ValueError, match=f"1 to 4 samples, and there are {count}"):
        teach(small, teacher, initial_state(small, of(), teacher), samples(count), NOW)


def test_a_crop_is_resized_to_each_network_and_no_more():
    image = Image.open(io.BytesIO(picture(side=20)))
    same, smaller = Preprocessing(input_size=(3, 20, 20), crop_pct=0.5), Preprocessing(input_size=SIZE, crop_pct=0.5)
    pixels = torch.from_numpy(np.asarray(image).astype(np.float32) / 255).permute(2, 0, 1)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (same.mean, same.std))
    torch.testing.assert_close(same.of_crop(image), (pixels - mean) / std)
    whole = Preprocessing(input_size=SIZE, crop_pct=1.0)
    torch.testing.assert_close(smaller.of_crop(image), whole(image))
