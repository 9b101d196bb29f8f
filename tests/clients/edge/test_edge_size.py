"""What an edge takes of a small machine: room on its disk, and memory."""

import io
import json
import platform
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
from cloud import cloud
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from surroundings import Publisher, until

from normstream.clients.edge.package import Package

MB = 10**6
COMPILED = 1.25  # of a Python file's size: what pip adds by compiling it, on average of these distributions
ROOT = Path(__file__).resolve().parents[3]
COMMAND = [sys.executable, "-m", "normstream.clients.edge", "run", "--source", "-", "--threads", "2", "--edge", "gate"]


def required(name: str, extra: str, found: set[tuple[str, str]]) -> set[str]:
    """A distribution with an extra of it, and all that these require."""
    if (name, extra) not in found:
        found.add((name, extra))
        for each in map(Requirement, distribution(name).requires or ()):
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                for its in ("", *each.extras):
                    required(canonicalize_name(each.name), its, found)
    return {name for name, _ in found}


def on_disk(name: str) -> int:
    """Bytes of what pip puts there for a distribution, compiled files among them, which a developer's may lack."""
    paths = (Path(file.locate()) for file in distribution(name).files)
    if name == "normstream":  # a developer's installation only points at the code
        paths = (file for part in ("adaptation", "clients", "service") for file in (ROOT / part).rglob("*"))
    sizes = ((path.suffix, path.stat().st_size) for path in paths if path.is_file() and path.suffix != ".pyc")
    return sum(int(size * (1 + COMPILED)) if kind == ".py" else size for kind, size in sizes)


def test_an_installation_takes_less_than_200_mb():
    distributions = required("normstream", "edge", set())
    assert distributions >= {"normstream", "numpy", "httpx", "onnxruntime", "pillow"}
    assert not distributions & {"torch", "torchvision", "timm", "onnx", "fastapi", "redis", "sympy", "scipy"}
    sizes = {name: on_disk(name) for name in distributions}
    assert sum(sizes.values()) < 200 * MB, sorted(sizes.items(), key=lambda item: -item[1])


def frame(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((640, 480)).save(buffer, "JPEG")
    return buffer.getvalue()


def resident(pid: int, field: str) -> int:
    """Bytes of a process in memory: `VmRSS` now, `VmHWM` the most so far."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(kilobytes)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what is freed goes back to the system by glibc's means")
@pytest.mark.timeout(300)
def test_an_edge_of_the_served_model_stays_under_250_mb_while_updates_come(lite0_package: Package, tmp_path: Path):
    frames = [frame(seed) for seed in range(8)]
    with cloud(lite0_package.folder) as server:
        words = ["--server", server.url, "--folder", tmp_path / "edge"]
        with subprocess.Popen([*COMMAND, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            said: list[dict] = []

            def predicts(count: int = 1) -> str | None:
                for _ in range(count):
                    process.stdin.write(frames[len(said) % len(frames)])
                    process.stdin.flush()
                    said.append(json.loads(process.stdout.readline()))
                return said[-1]["version"]

            predicts(64)  # as many as it remembers
            publisher = Publisher(server, lite0_package)
            peaks = []
            for seed in range(1, 6):
                publisher.publish(seed, parameters=publisher.parameters(seed, size=1e-3))
                until(lambda seed=seed: predicts() == f"a.{seed}")
                predicts(8)
                assert resident(process.pid, "VmRSS") < 250 * MB
                peaks.append(resident(process.pid, "VmHWM"))
            assert peaks[-1] < peaks[1] + 20 * MB
    assert [line["frame"] for line in said] == [str(number) for number in range(len(said))]
    assert all("top" in line for line in said)
