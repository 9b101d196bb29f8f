"""What the service adds to decoding and the forward pass, and what sharing a forward pass between streams brings."""

import argparse
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import skimage.data
from PIL import Image
from timing import in_turns, median_ms, table

# First ours, which makes torchvision importable for timm.
from normstream.adaptation import PRESETS, ModelSpec, Request, StreamState, initial_state, load_model, step

# isort: split
import timm
import torch

from normstream.clients import Client
from normstream.clients.demo.server import running
from normstream.service.images import Images, prepare
from normstream.service.tuning import keep_memory

MODEL = "tf_efficientnet_lite0"
STREAMS = 8
REST_S = 0.5  # OpenMP's threads spin for a while after their last work, and would take the server's cores


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    keep_memory()
    with running() as server:
        header = ["recipe", "plain", "with adaptation", "over HTTP", "added to plain", "added to adaptation"]
        print(table([header[0], *(f"{name} (ms)" for name in header[1:])], overhead(server.url, rounds)))
    print()
    print(table(["clients", "images/s one stream at a time", "images/s together", "times as fast"], sharing()))


def photograph() -> bytes:
    """A JPEG such as a camera sends."""
    buffer = io.BytesIO()
    Image.fromarray(skimage.data.coffee()).resize((640, 480)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def overhead(url: str, rounds: int) -> list[list[object]]:
    """One client, one JPEG at a time: medians of decoding and a plain forward, of decoding and a step, and over HTTP.

    The first two are in this process, the third has its state committed before the answer.
    """
    hosted, jpeg = load_model(ModelSpec(architecture=MODEL)), photograph()
    network = timm.create_model(MODEL).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def images() -> torch.Tensor:
        return prepare(Images(files=(jpeg,)), hosted.preprocessing, 10**8)

    def plain() -> None:
        with torch.inference_mode():
            network(images().contiguous(memory_format=torch.channels_last))

    def adapted(state: StreamState) -> None:
        step(hosted, [Request(state, images())])

    rows: list[list[object]] = []
    with Client(url) as client:
        for recipe in ("source", "alpha_bn", "ema"):
            state = initial_state(hosted, PRESETS[recipe])
            bare = in_turns({"plain": plain, "step": partial(adapted, state)}, rounds)
            client.create_stream(recipe, recipe=recipe)
            time.sleep(REST_S)
            http = median_ms(in_turns({"http": partial(client.predict, recipe, jpeg)}, rounds)["http"])
            medians = [median_ms(bare["plain"]), median_ms(bare["step"])]
            rows.append([recipe, *(f"{each:.1f}" for each in (*medians, http, *(http - each for each in medians)))])
    return rows


def sharing() -> list[list[object]]:
    """Several clients with a stream each: forward passes of one stream each, against passes that streams share."""
    rates = {}
    for name, max_batch in (("apart", "1"), ("together", "32")):
        with running(NORMSTREAM_MAX_BATCH=max_batch) as server:
            rates[name] = _rate(server.url)
    return [[STREAMS, f"{rates['apart']:.1f}", f"{rates['together']:.1f}", f"{rates['together'] / rates['apart']:.2f}"]]


def _rate(url: str, seconds: float = 10.0) -> float:
    """Images per second of all clients together, each sending its next image when it has its answer."""
    image = np.asarray(Image.open(io.BytesIO(photograph())).resize((224, 224)))[None]
    done, stop = [0] * STREAMS, threading.Event()

    def run(index: int) -> None:
        with Client(url) as client:
            client.create_stream(f"camera-{index}", recipe="ema")
            while not stop.is_set():
                client.predict(f"camera-{index}", image)
                done[index] += 1

    with ThreadPoolExecutor(STREAMS) as pool:
        runs = [pool.submit(run, index) for index in range(STREAMS)]
        time.sleep(3)  # Warm-up.
        before, begin = sum(done), time.perf_counter()
        time.sleep(seconds)
        rate = (sum(done) - before) / (time.perf_counter() - begin)
        stop.set()
        for each in runs:
            each.result()
    return rate


if __name__ == "__main__":
    main()
