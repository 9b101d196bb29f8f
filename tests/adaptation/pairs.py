"""What the tests of continual learning share: coloured images of classes, and learners over small networks."""

import numpy as np
import torch

from normstream.adaptation.continual import Learning

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (120, 120, 120)}
SIDE = 16
NORMS = ["adab2n", "bn", "gn", "cn", None]
GROUPS = {"gn": {"groups": 2}, "cn": {"groups": 2}}  # The networks have few channels.
METHODS = ["er_ace", "derpp"]
REPLAY = {"keep": "images", "capacity": 20, "batch": 6, "encoding": "png"}
PAIRS = [["red", "green"] * 3, ["blue", "grey"] * 3]


def coloured(labels, seed=0):
    """Noisy images [B, 16, 16, 3], each in its label's colour."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(-25, 26, (len(labels), SIDE, SIDE, 3))
    return np.clip(np.array([COLOURS[label] for label in labels])[:, None, None] + noise, 0, 255).astype(np.uint8)


def recipe(norm="adab2n", method="er_ace", **changes):
    chosen = {
        "norm": norm and {"name": norm, **GROUPS.get(norm, {})},
        "method": {"name": method},
        "learns": "all",
        "replay": REPLAY,
    }
    return Learning.model_validate(chosen | changes)


def walk(learner, state, steps, first=0):
    """Steps over the first pair, then the second."""
    report = None
    for turn in range(first, first + steps):
        labels = PAIRS[turn // 4 % 2]
        state, _, report = learner.learn(state, coloured(labels, turn), labels)
    return state, report


def same(one, other):
    assert one.keys() == other.keys()
    return [name for name in one if one[name].shape != other[name].shape or not torch.equal(one[name], other[name])]
