import io
import json
import re
import resource
import signal
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from normstream.clients.edge.bench import measure
from normstream.clients.edge.metrics import CONTENT_TYPE, exposition, serving
from normstream.clients.edge.options import Options
from normstream.clients.edge.status import Counters, Status

COMMAND = [sys.executable, "-m", "normstream.clients.edge"]
FORBIDDEN = ("torch", "timm", "onnx.", "pydantic", "fastapi", "redis", "normstream.adaptation", "normstream.service")


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.jpg").write_bytes(jpeg(i))
    return folder


def call(*words: Any, **options: Any) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *map(str, words)], capture_output=True, timeout=60, check=False, **options)


def run(server, folder: Path, source: Any, *words: Any, **options: Any) -> subprocess.CompletedProcess:
    named = ("--server", server.url, "--edge", "gate", "--folder", folder, "--source", source)
    return call("run", *named, *words, **options)


def lines(output: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_a_folder_is_predicted_line_by_line(server, images, tmp_path):
    (images / "2.jpg").write_bytes(b"broken")
    (images / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    done = run(server, tmp_path / "edge", images, "--batch", 2, "--top-k", 3, "--drain", 20)
    assert done.returncode == 0, done.stderr
    said = {line["frame"]: line for line in lines(done.stdout)}
    assert set(said) == {"0.jpg", "1.jpg", "2.jpg", "3.jpg", "3.png", "4.jpg"}
    assert {name for name, line in said.items() if "error" in line} == {"2.jpg", "3.png"}
    good = said["0.jpg"]
    assert set(good) == {"frame", "taken_at", "top", "entropy", "version", "sample", "excluded"}
    assert [set(each) for each in good["top"]] == [{"class", "label", "probability"}] * 3
    samples = {line["sample"] for line in said.values() if line.get("sample")}
    assert set(server.samples) == samples
    shown = call("status", "--folder", tmp_path / "edge")
    assert shown.returncode == 0
    for words in ("gate (not running)", "convolutions", f"4, of which {len(samples)} uploaded", "the model's own"):
        assert words in shown.stdout.decode()
    status = json.loads(call("status", "--folder", tmp_path / "edge", "--json").stdout)
    assert status["counters"]["seen"] == 4
    assert status["running"] is False


def test_the_standard_input_is_predicted(server, tmp_path):
    done = run(server, tmp_path / "edge", "-", input=jpeg(0) + jpeg(1))
    assert [line["frame"] for line in lines(done.stdout)] == ["0", "1"]


def test_an_edge_without_network_goes_on(server, images, tmp_path):
    assert run(server, tmp_path / "edge", images).returncode == 0
    server.away = True
    done = run(server, tmp_path / "edge", images)
    assert done.returncode == 0
    assert len(lines(done.stdout)) == 5


def test_an_edge_on_a_full_disk_starts_and_says_so(server, images, tmp_path):
    words = ("--drain", 20, "--unreliable", 100, "--uninformative", 0, "--redundant", 2)
    assert run(server, tmp_path / "edge", images, *words).returncode == 0
    taken = len(server.samples)
    for left in (tmp_path / "edge").glob("spool.sqlite*"):
        left.unlink()
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))  # no file may grow
    done = run(server, tmp_path / "edge", images, *words, preexec_fn=full)
    assert done.returncode == 0, done.stderr
    assert [line["frame"] for line in lines(done.stdout) if "top" in line] == [f"{i}.jpg" for i in range(5)]
    assert "samples wait in memory alone" in " ".join(done.stderr.decode().split())
    assert len(server.samples) == 2 * taken == 10  # they go all the same


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("status", "--folder", "nowhere"), "no edge client has run on the folder nowhere"),
        (("bench", "--folder", "nowhere"), "there is no model in the folder nowhere"),
        (("run", "--server", "http://x", "--edge", "g", "--source", "nowhere"), "nowhere is no folder"),
    ],
)
def test_what_people_can_mend_is_one_line(tmp_path, words, message):
    done = call(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.decode().startswith(f"normstream-edge: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == b""


def test_a_recipe_may_be_json(server, images, tmp_path):
    assert run(server, tmp_path / "edge", images, "--recipe", '{"norm": {"name": "tbr"}}').returncode == 0
    assert server.edges["gate"]["recipe"] == {"norm": {"name": "tbr"}}
    done = run(server, tmp_path / "edge", images, "--recipe", '{"norm"')
    assert (done.returncode, b"it begins like JSON" in done.stderr) == (2, True)


def test_a_running_edge_is_watched_and_ended(server, images, tmp_path):
    words = ["run", "--server", server.url, "--edge", "gate", "--folder", tmp_path / "edge", "--source", images]
    with subprocess.Popen(
        [*COMMAND, *words, "--watch", "--metrics-port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        for _ in range(5):
            process.stdout.readline()
        said = b""
        while not (found := re.search(rb"(http://127.0.0.1:\d+/metrics)", said)):
            said += process.stderr.read1()
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(found[1].decode()) as answer:
            metrics = answer.read().decode()
        assert "normstream_edge_images_total 5\n" in metrics
        (images / "later.jpg").write_bytes(jpeg(9))
        assert json.loads(process.stdout.readline())["frame"] == "later.jpg"
        busy = run(server, tmp_path / "edge", images)
        assert (busy.returncode, b"in use" in busy.stderr) == (1, True)
        assert call("status", "--folder", tmp_path / "edge", "--json").stdout.count(b'"running": true') == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert json.loads(call("status", "--folder", tmp_path / "edge", "--json").stdout)["counters"]["seen"] == 6


def test_a_new_edge_waits_for_its_server(server, images, tmp_path):
    server.away = True
    words = ["run", "--server", server.url, "--edge", "gate", "--folder", tmp_path / "edge", "--source", images]
    with subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while b"no model yet" not in process.stderr.readline():
            pass
        server.away = False
        assert len(lines(process.communicate(timeout=30)[0])) == 5


STATUS = Status(
    edge='gate "3"\n',
    server="http://cloud",
    model="m",
    fingerprint="sha256:0",
    version="a.1",
    version_created_at=100.0,
    counters=Counters(seen=10, uploaded=2),
    waiting=3,
    waiting_bytes=4096,
    latency_ms={"p50": 8.0, "p95": 12.5},
    applied_ms=None,
    last_contact_at=150.0,
    problem=None,
    at=160.0,
)


def test_the_metrics_are_in_prometheus_format():
    text = exposition(STATUS)
    for line in text.splitlines():
        assert re.fullmatch(r"# (HELP|TYPE) normstream_edge_\w+ .+|normstream_edge_\w+(\{.+\})? -?[\d.e+]+", line), line
    for line in (
        "normstream_edge_images_total 10",
        'normstream_edge_excluded_total{reason="redundant"} 0',
        'normstream_edge_step_seconds{quantile="0.95"} 0.0125',
        "normstream_edge_version_age_seconds 60.0",
        'normstream_edge_info{edge="gate \\"3\\"\\n",model="m",version="a.1"} 1',
        "normstream_edge_healthy 1",
    ):
        assert line in text.splitlines()


def test_the_metrics_are_served():
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with serving(0, lambda: STATUS) as port:
        with opener.open(f"http://127.0.0.1:{port}/metrics") as answer:
            assert answer.headers["Content-Type"] == CONTENT_TYPE
            assert answer.read().decode() == exposition(STATUS)
        with pytest.raises(urllib.error.HTTPError, match="404") as error:
            opener.open(f"http://127.0.0.1:{port}/else")
        error.value.close()


def test_the_bench_measures_all_contestants(convolutions_package):
    result = measure(convolutions_package, seconds=0.3, turns=1, batch=2, update_every_s=0.1, options=Options())
    assert [row.name.split(",")[0] for row in result.rows] == [
        "plain session",
        "Runtime",
        "plain session",
        "EdgeClient",
    ]
    assert all(row.images_per_s > 0 and row.share > 0 for row in result.rows)
    assert result.updates > 0
    assert result.applied_ms > 0
    assert result.lost == 0
    assert json.dumps(result.plain())
    assert "updates" in result.caption()


def test_the_edge_loads_nothing_of_the_server():
    program = "import sys, normstream.clients.edge.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "normstream.clients.edge.client" in loaded
    assert not [name for name in loaded if name.startswith(FORBIDDEN) or name == "onnx"]


def test_a_running_edge_is_small(server, images, tmp_path):
    words = ["run", "--server", server.url, "--edge", "gate", "--folder", tmp_path / "edge", "--source", images]
    with subprocess.Popen([*COMMAND, *words, "--watch"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        for _ in range(5):
            process.stdout.readline()
        time.sleep(0.2)
        assert psutil.Process(process.pid).memory_info().rss < 150 * 2**20  # the small network's; lite0 has 250 MB
        process.terminate()
