"""Data that is drawn here: photographs and CIFAR-like files."""

import io

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from typer import Typer
from typer.testing import CliRunner

from normstream.adaptation.bench.command import bench
from normstream.adaptation.cifar_networks import cifar_resnet10


def picture(seed, width=80, height=64):
    """A gradient with a few shapes on it: edges, colours, dark and bright places."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(20, 200, width)[None, :, None] * rng.uniform(0.4, 1, 3)
    image = Image.fromarray(np.broadcast_to(ramp, (height, width, 3)).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        left, top = rng.integers(0, width - 8), rng.integers(0, height - 8)
        box = left, top, left + rng.integers(6, width // 2), top + rng.integers(6, height // 2)
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=tuple(rng.integers(0, 256, 3)))
    return image


def photographs(folder, count=6):
    """In the layout NNN_WNID_NAME.jpg."""
    folder.mkdir()
    for index in range(count):
        picture(index, 320, 260).save(folder / f"{index:03}_n0000000{index}_thing.jpg", quality=90)
    return folder


def small_images(count, seed=0):
    return np.stack([np.asarray(picture(1000 * seed + index, 32, 32)) for index in range(count)])


def arrays(count=30):
    """In the layout of test.npz."""
    files = []
    for image in small_images(count):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=95)
        files.append(file.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    return {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offsets": offsets,
        "labels": np.arange(count, dtype=np.int64) % 10,
    }


def cifar(folder, count=30):
    """A test.npz and an untrained source model beside it."""
    folder.mkdir()
    np.savez(folder / "test.npz", **arrays(count))
    torch.manual_seed(0)
    save_file(cifar_resnet10().state_dict(), folder / "source.safetensors")
    return folder


def run(*arguments):
    """The command, as people call it."""
    app = Typer(add_completion=False)
    app.command("bench")(bench)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
