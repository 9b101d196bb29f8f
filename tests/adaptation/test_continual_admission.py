"""States that come from elsewhere: what is wrong with one is told before anything is learnt on."""

import tracemalloc

import pytest
import torch
from pairs import NORMS, SIDE, recipe, walk
from safetensors.torch import load, save
from torch import nn

from normstream.adaptation import HostedModel, Preprocessing
from normstream.adaptation.continual import Learner, damage
from normstream.adaptation.continual.classes import Classes
from normstream.adaptation.tensor_slots import in_slot


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("own", [False, True])
def test_states_are_sound(small, norm, own):
    learner = Learner(small, recipe(norm, "derpp", descent={"momentum": 0.9}))
    state = learner.initial(["a", "b", "c", "d", "e"] if own else [])
    assert damage(learner, state) is None
    state, _ = walk(learner, state, 5)
    assert damage(learner, load(save(state))) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.bias": torch.zeros(3)}, "head.bias"),
        ({"head.weight": torch.full((4, 10), torch.nan)}, "not finite"),
        ({"network.body.1.run_var": -torch.ones(8)}, "negative variance"),
        ({"network.body.1.task_weight": torch.zeros(5)}, "task_weight"),
        ({"extra": torch.zeros(1)}, "extra is unknown"),
        ({"steps": torch.tensor(-1)}, "steps is -1"),
        ({"steps": torch.tensor(0.0)}, "steps"),
        ({"batches": torch.tensor(2**62)}, "batches is 4611686018427387904"),
        ({"replay.seen": torch.tensor(2**63 - 1)}, "replay.seen is 9223372036854775807"),
        ({"n" * 1000: torch.zeros(1)}, "is unknown"),
        ({"classes.names": torch.zeros(3, dtype=torch.uint8)}, "names of the classes"),
        ({"classes.names": torch.zeros(3, dtype=torch.bfloat16)}, "classes.names is torch.bfloat16"),
        ({"classes.first": torch.tensor(2)}, "network's own"),
        ({"classes.first": torch.tensor(torch.inf)}, "classes.first is torch.float32"),
        ({"classes.first": torch.zeros(2, dtype=torch.int64)}, "classes.first is torch.int64 (2,)"),
        ({"replay.labels": torch.full((20,), 4)}, "labels"),
        ({"replay.labels": torch.zeros(3, dtype=torch.int64)}, "disagree"),
        ({"replay.lengths": torch.zeros(20, dtype=torch.int64)}, "cut up"),
        ({"replay.places": torch.tensor(21)}, "places"),
        ({"replay.outputs": torch.full((20,), 9)}, "outputs"),
        ({"replay.outputs": torch.zeros(20, dtype=torch.int64)}, "without logits"),
        ({"replay.outputs": torch.zeros(20, dtype=torch.int64), "replay.logits": torch.zeros(20, 0)}, "without logits"),
    ],
)
def test_a_damaged_state_is_told(small, change, message):
    learner = Learner(small, recipe(method="derpp"))
    state, _ = walk(learner, learner.initial(), 5)
    told = damage(learner, state | change)
    assert message in told
    assert len(told) < 200


def test_logits_that_the_method_does_not_keep_are_told(small):
    """They would be in no bound of bytes that the memory was filled by."""
    learner = Learner(small, recipe(method="er_ace"))
    state, _ = walk(learner, learner.initial(), 5)
    assert damage(learner, state) is None
    assert "keeps none" in damage(learner, state | {"replay.logits": torch.zeros(20, 2)})


def test_lengths_whose_sum_comes_round_are_told(small):
    learner = Learner(small, recipe())
    state, _ = walk(learner, learner.initial(), 5)
    lengths = state["replay.lengths"].clone()
    lengths[:4] += 2**62
    assert lengths.sum() == state["replay.lengths"].sum()
    assert "cut up" in damage(learner, state | {"replay.lengths": lengths})


def test_a_memory_of_what_the_recipe_does_not_keep_is_told(small):
    learner = Learner(small, recipe(None, learns="head", replay={"keep": "features", "capacity": 20}))
    assert damage(learner, learner.initial()) is None
    state, _ = walk(learner, learner.initial(), 2)
    assert damage(learner, state) is None
    uneven = state["replay.lengths"] + torch.tensor([4, -4] * 6)
    assert "not 10 features" in damage(learner, state | {"replay.lengths": uneven})
    broken = torch.full_like(state["replay.data"], 255)
    assert "features that are not finite" in damage(learner, state | {"replay.data": broken})
    forgetful = Learner(small, recipe(None, learns="head", replay={"keep": "nothing", "capacity": 20}))
    assert "keeps none" in damage(forgetful, state)


def test_names_alone_take_no_memory_for_outputs():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 5))
    hosted = HostedModel(network, "wide", Preprocessing(input_size=(3, SIDE, SIDE)))
    learner = Learner(hosted, recipe(None, max_new_classes=20_000))

    def named(count):
        return learner.initial() | in_slot(Classes(tuple(map(str, range(count))), 0).packed(), "classes")

    assert damage(learner, named(20_001)) == "20001 classes are new, of at most 20000"
    many = named(20_000)
    tracemalloc.start()
    try:
        assert "expected torch.float32 (20000" in damage(learner, many)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


def test_a_state_with_less_is_told(small):
    learner = Learner(small, recipe())
    state = learner.initial()
    for name in ("classes.first", "head.weight", "replay.data"):
        rest = {key: value for key, value in state.items() if key != name}
        assert damage(learner, rest) == f"{name} is missing"


def test_a_state_of_another_recipe_is_told(small):
    learner, other = Learner(small, recipe()), Learner(small, recipe("bn"))
    assert "task_weight" in damage(other, learner.initial())
