"""What the tests of taught streams share: a student and a teacher of each kind, samples and lessons."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from small_net import SmallNet, host_small, host_tokens, randomised

from normstream.adaptation import (
    HostedModel,
    Preprocessing,
    Recipe,
    Sample,
    StreamState,
    initial_state,
    teach,
)

NOW = 1_800_000_000.0
SMALL = {"teacher": "teacher", "batch": 4, "replay": 6, "lr": 0.05, "teacher_lr": 0.05, "replay_bytes": 8 * 1024}


def host_teacher(seed=3, classes=5, name="teacher", side=20):
    torch.manual_seed(seed)
    return HostedModel(randomised(SmallNet(classes), seed), name, Preprocessing(input_size=(3, side, side)))


def named(hosted, name):
    hosted.name = name
    return hosted


STUDENTS = {"small": host_small(), "tokens": host_tokens()}
TEACHERS = {"small": host_teacher(), "tokens": named(host_tokens(seed=5), "teacher")}


def of(norm="tbr", **changes) -> Recipe:
    return Recipe.parse({"norm": {"name": norm}, "update": {"name": "cema"} | SMALL | changes})


RECIPES = {
    "small-tbr": ("small", "small", of()),
    "small-ema": ("small", "small", of("ema", teacher_norm="tbr")),
    "small-alpha_bn": ("small", "small", of("alpha_bn", teacher_norm="published")),
    "small-unmix_tns": ("small", "small", of("unmix_tns", teacher_norm="alpha_bn")),
    "small-iabn": ("small", "small", of("iabn", teacher_norm="unmix_tns")),
    "small-source-momentless": ("small", "small", of("source", momentum=0.0, replay=0)),
    "tokens-source": ("tokens", "tokens", of("source", teacher_norm="source")),
    "tokens-ln_align": ("tokens", "tokens", of("ln_align", teacher_norm="source")),
    "small of tokens": ("small", "tokens", of("tbr", teacher_norm="source")),
}
every_recipe = pytest.mark.parametrize(
    ("student", "teacher", "recipe"),
    [(STUDENTS[student], TEACHERS[teacher], recipe) for student, teacher, recipe in RECIPES.values()],
    ids=RECIPES.keys(),
)


def picture(seed=0, side=16, kind="PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    return compressed(Image.fromarray(pixels), kind)


def compressed(image: Image.Image, kind="PNG") -> bytes:
    data = io.BytesIO()
    image.save(data, kind)
    return data.getvalue()


def samples(count, first=0, taken_at=NOW) -> list[Sample]:
    return [Sample(f"s{first + n}", picture(first + n), taken_at + n) for n in range(count)]


def taught(student, teacher, recipe, sizes) -> tuple[StreamState, list]:
    state, reports = initial_state(student, recipe, teacher), []
    for turn, size in enumerate(sizes):
        outcome = teach(student, teacher, state, samples(size, first=10 * turn, taken_at=NOW + turn), NOW + turn)
        state = outcome.state
        reports.append(outcome.report)
    return state, reports


def same(one: StreamState, other: StreamState) -> bool:
    assert one.tensors.keys() == other.tensors.keys()
    return one.step == other.step and all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
