"""What the tests of continual learning share: coloured images of classes, and learners over small networks."""

import numpy as np

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (120, 120, 120)}
SIDE = 16


def coloured(labels, seed=0):
    """Noisy images [B, 16, 16, 3], each in its label's colour."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(-25, 26, (len(labels), SIDE, SIDE, 3))
    return np.clip(np.array([COLOURS[label] for label in labels])[:, None, None] + noise, 0, 255).astype(np.uint8)
