"""A folder like CIFAR-10's, of images made up here: each class has a colour of its own."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = np.random.default_rng(7).integers(0, 256, (10, 3))


def picture(label: int, number: int) -> bytes:
    noise = np.random.default_rng((label, number)).normal(0, 20, (32, 32, 3))
    buffer = io.BytesIO()
    Image.fromarray((COLOURS[label] + noise).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def arrays(of_each: int) -> dict[str, np.ndarray]:
    labels = np.arange(10 * of_each) % 10
    files = [picture(int(label), number) for number, label in enumerate(labels)]
    return {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]),
        "labels": labels,
    }


def made_up_cifar(folder: Path, train: int = 4, test: int = 2) -> Path:
    """The folder, with so many images of each class."""
    np.savez(folder / "train.npz", **arrays(train))
    np.savez(folder / "test.npz", **arrays(test))
    return folder
