"""What hosting and each member cost beside a plain timm forward, and what the memory format brings.

Every ratio is against timm's own eval forward of the same network in the same memory format, process and round. The
last table compares with timm as it comes: default memory format, in a process of its own whose allocator nobody set.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

# First ours, which makes torchvision importable for timm.
from normstream.adaptation import PRESETS, HostedModel, Preprocessing, Request, initial_state, step

# isort: split
import timm
import torch
from timing import in_turns, median_ms, ratio, table

from normstream.service.tuning import keep_memory

MODELS = ("tf_efficientnet_lite0", "resnet50")
BATCHES = (1, 4, 16)
FORWARD_ONLY = ("source", "alpha_bn", "bn1", "n_prior", "ema", "tbr", "iabn", "unmix_tns")
COSTLY = ("bn1", "lame", "tent", "eta", "sar")  # with an output member or an update; `bn1` is what TENT adds to

# A plain timm forward in a fresh process, printing its median in seconds.
PLAIN = """
import statistics, sys, time, normstream.adaptation, timm, torch
network, images = timm.create_model(sys.argv[1]).eval(), torch.randn(int(sys.argv[2]), 3, 224, 224)
with torch.inference_mode():
    seconds = []
    for _ in range(int(sys.argv[3])):
        begin = time.perf_counter()
        network(images)
        seconds.append(time.perf_counter() - begin)
print(statistics.median(seconds[3:]))
"""


def main() -> None:
    """Print the tables, model by model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--models", nargs="+", default=MODELS)
    arguments = parser.parse_args()
    keep_memory()
    for name in arguments.models:
        for presets, batches in ((FORWARD_ONLY, BATCHES), (COSTLY, (4, 16, 64))):
            header = ["model", "batch", "plain (ms)", *(f"{preset} (x)" for preset in presets)]
            print(table(header, members(name, presets, batches, arguments.rounds)), end="\n\n", flush=True)
        header = ["model", "batch", "timm as it comes (ms)", "hosted, `source` (ms)", "times as fast"]
        print(table(header, layouts(name, arguments.rounds)), end="\n\n", flush=True)


def hosted_and_plain(name: str) -> tuple[HostedModel, torch.nn.Module]:
    """One network twice, in the same memory format."""
    plain = timm.create_model(name).eval()
    copy = timm.create_model(name)
    copy.load_state_dict(plain.state_dict())
    return HostedModel(copy, name, Preprocessing.of(copy)), plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def members(name: str, presets: Sequence[str], batches: Sequence[int], rounds: int) -> list[list[object]]:
    """A row for each batch size: presets against the plain forward."""
    hosted, plain = hosted_and_plain(name)
    return [[name, batch, *_members(hosted, plain, presets, batch, rounds)] for batch in batches]


def _members(hosted: HostedModel, plain: torch.nn.Module, presets: Sequence[str], batch: int, rounds: int) -> list[str]:
    images = torch.randn(batch, *hosted.preprocessing.input_size).contiguous(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.inference_mode():
            plain(images)

    requests = {name: [Request(initial_state(hosted, PRESETS[name]), images)] for name in presets}
    contenders = {"plain": forward} | {name: partial(step, hosted, request) for name, request in requests.items()}
    seconds = in_turns(contenders, rounds)
    ratios = [f"{ratio(seconds[name], seconds['plain']):.3f}" for name in presets]
    return [f"{median_ms(seconds['plain']):.1f}", *ratios]


def layouts(name: str, rounds: int) -> list[list[object]]:
    """Hosted as we ship it, against timm as it comes in a process that nothing was set for."""
    hosted, _ = hosted_and_plain(name)
    rows: list[list[object]] = []
    for batch in BATCHES:
        request = [Request(initial_state(hosted, PRESETS["source"]), torch.randn(batch, 3, 224, 224))]
        plain = 1000 * float(_plain(name, batch, rounds))
        ours = median_ms(in_turns({"ours": partial(step, hosted, request)}, rounds)["ours"])
        rows.append([name, batch, f"{plain:.1f}", f"{ours:.1f}", f"{plain / ours:.2f}"])
    return rows


def _plain(name: str, batch: int, rounds: int) -> str:
    command = [sys.executable, "-c", PLAIN, name, str(batch), str(rounds)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
