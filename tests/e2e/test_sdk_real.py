"""The Python clients and the command line against the real server."""

import asyncio
import inspect
import json
import re
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from servers import COMMAND, Process, new_id, until
from typer.testing import CliRunner

from normstream.clients import AsyncClient, Client, Conflict, InvalidInput, NotFound, Prediction
from normstream.clients.cli import app
from normstream.service.storage.redis_link import TIMEOUT_S

# The calls of test_sdk_labels_real.py and test_sdk_edges.py.
ELSEWHERE = {"label", "label_images", "scores", "edges", "edge", "delete_edge"}
SCENES = np.random.default_rng(4).integers(0, 256, (3, 60, 80, 3), dtype=np.uint8)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(SCENES[0]).save(path)
    return path


def public(kind: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(kind, callable) if not name.startswith("_")}


class Calls:
    """A client that remembers which of its methods were called."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.called: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.called.add(name)
        return getattr(self._client, name)


def test_every_call_of_the_client(real: Process, photo: Path) -> None:
    with Client(real.url) as plain:
        client = Calls(plain)
        assert client.ready()
        (model,) = client.models()
        assert client.model(model.name) == model
        assert set(client.recipes().presets) >= {"alpha_bn", "ema"}
        assert client.methods()["ema"].preset == client.recipes().presets["ema"]

        stream = client.create_stream(new_id("gate"), recipe="ema", idle_ttl_s=900)
        assert client.create_stream(stream.id, recipe="ema", idle_ttl_s=900) == stream
        assert client.stream(stream.id) == stream
        assert stream in list(client.streams())

        answer = client.predict(stream.id, [photo, photo.read_bytes(), SCENES[0]], top_k=2)
        assert (answer.step, answer.version, answer.adapted) == (1, 2, True)
        check_prediction(answer)
        values = client.predict(stream.id, SCENES, adapt=False, output="probs").values
        assert values.shape == (3, 1000)
        np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-4)

        snapshot = client.snapshot(stream.id)
        assert client.snapshots(stream.id) == (snapshot,)
        content = client.download_snapshot(snapshot.id)
        copy = client.upload_snapshot(new_id("copy"), content)
        assert (copy.stream, copy.step, copy.bytes) == (None, 1, len(content))
        assert client.fork(stream.id, new_id("fork")).step == 1
        fork = client.fork(stream.id)
        assert client.reset(stream.id).step == 0
        assert client.restore(stream.id, copy.id).step == 1
        client.delete_snapshot(copy.id)
        client.delete_stream(fork.id)

        with ThreadPoolExecutor(1) as thread:
            seen = thread.submit(lambda: [event.kind for event in client.events(stream.id, "0-0")])
            client.delete_stream(stream.id)
            assert seen.result(20) == ["step", "reset", "restore", "deleted"]
        assert client.called == public(Client) - ELSEWHERE - {"send", "close"}


def check_prediction(answer: Prediction) -> None:
    """Of three times one image: the same classes thrice."""
    first, *others = answer.predictions
    assert len(first.top) == 2
    assert isinstance(first.top[0].label, str)
    for other in others:
        assert [each.index for each in other.top] == [each.index for each in first.top]


async def test_every_call_of_the_asynchronous_client(real: Process, photo: Path) -> None:
    async with AsyncClient(real.url) as plain:
        client = Calls(plain)
        assert await client.ready()
        (model,) = await client.models()
        assert await client.model(model.name) == model
        assert set((await client.recipes()).presets) >= {"alpha_bn", "ema"}
        assert (await client.methods())["tent"].backward

        stream = await client.create_stream(new_id("gate"), recipe="ema")
        assert await client.stream(stream.id) == stream
        assert stream in [each async for each in client.streams()]

        answer = await client.predict(stream.id, [photo, photo, SCENES[0]], top_k=2)
        assert (answer.step, answer.version) == (1, 2)
        check_prediction(answer)

        snapshot = await client.snapshot(stream.id)
        assert await client.snapshots(stream.id) == (snapshot,)
        content = await client.download_snapshot(snapshot.id)
        copy = await client.upload_snapshot(new_id("copy"), content)
        fork = await client.fork(stream.id)
        assert (await client.reset(stream.id)).step == 0
        assert (await client.restore(stream.id, copy.id)).step == 1
        await client.delete_snapshot(copy.id)
        await client.delete_stream(fork.id)

        seen = asyncio.ensure_future(kinds(client, stream.id))
        await client.delete_stream(stream.id)
        assert await asyncio.wait_for(seen, 20) == ["step", "reset", "restore", "deleted"]
        assert client.called == public(AsyncClient) - ELSEWHERE - {"send", "close"}


async def kinds(client: Any, stream: str) -> list[str]:
    return [event.kind async for event in client.events(stream, "0-0")]


async def test_many_at_once_adapt_each_stream_once_per_call(real: Process) -> None:
    async with AsyncClient(real.url) as client:
        streams = [(await client.create_stream(new_id())).id for _ in range(4)]
        await asyncio.gather(*(client.predict(stream, SCENES[:1]) for stream in streams * 3))
        assert [(await client.stream(stream)).step for stream in streams] == [3] * 4


def test_errors_are_told_apart(real: Process) -> None:
    with Client(real.url) as client:
        with pytest.raises(NotFound, match="There is no stream 'none'"):
            client.stream("none")
        stream = client.create_stream(recipe="ema").id
        with pytest.raises(Conflict, match="Choose another id"):
            client.create_stream(stream, recipe="bn1")
        with pytest.raises(InvalidInput, match=r"images\.1") as caught:
            client.predict(stream, [SCENES[0], b"no image"])
        assert [error.where for error in caught.value.errors] == ["images.1"]
        assert client.stream(stream).step == 0


def test_a_call_outlasts_an_outage_and_adapts_once(start: Callable[..., Process], folder: Path) -> None:
    """The server says 503 while its Redis stands still; the client comes back until it is served."""
    server = start("--data", folder / "data", redis_timeout_s=TIMEOUT_S).ready()
    with Client(server.url) as client, ThreadPoolExecutor(1) as thread:
        stream = client.create_stream().id
        redis = server.redis()
        redis.suspend()
        try:
            call = thread.submit(client.predict, stream, SCENES)
            until(lambda: re.search(rf'"POST /v1/streams/{stream}/predict\S* HTTP/1.1" 503', server.said))
        finally:
            redis.resume()
        assert call.result(20).step == 1
        assert client.stream(stream).step == 1


# The command line


def run(real: Process, *words: object, ok: bool = True) -> Any:
    result = CliRunner().invoke(app, [*map(str, words), "--url", real.url, "--json"])
    assert result.exit_code == (0 if ok else 1), result.output
    return json.loads(result.stdout) if ok else result.stderr


def test_the_commands_of_a_stream(real: Process, photo: Path, tmp_path: Path) -> None:
    stream = new_id("door")
    assert run(real, "stream", "create", stream, "--recipe", '{"norm": {"name": "ema"}}')["step"] == 0
    assert stream in [each["id"] for each in run(real, "stream", "list")]
    answer = run(real, "stream", "predict", stream, photo, photo.parent, "--batch-size", 1)
    assert len({each["sample"] for each in answer["predictions"]}) == 2
    assert (answer["step"], answer["version"], len(answer["predictions"])) == (2, 3, 2)
    assert answer["predictions"][0]["file"] == str(photo)
    assert answer["predictions"][0]["top"][0]["label"]
    run(real, "stream", "predict", stream, photo, "--no-adapt", "--output", tmp_path / "probs.npy")
    assert np.load(tmp_path / "probs.npy").shape == (1, 1000)

    snapshot = run(real, "stream", "snapshot", stream)["id"]
    assert [each["id"] for each in run(real, "stream", "snapshots", stream)] == [snapshot]
    file = tmp_path / "state.safetensors"
    assert run(real, "snapshot", "download", snapshot, file)["bytes"] == file.stat().st_size
    copy = run(real, "snapshot", "upload", file, "--id", new_id("copy"))["id"]
    assert run(real, "stream", "reset", stream)["step"] == 0
    assert run(real, "stream", "restore", stream, copy)["step"] == 2
    assert run(real, "snapshot", "delete", copy) == {"deleted": copy}
    fork = run(real, "stream", "fork", stream)["id"]
    assert run(real, "stream", "show", fork)["step"] == 2
    for each in (fork, stream):
        assert run(real, "stream", "delete", each) == {"deleted": each}
    assert f"There is no stream '{stream}'" in run(real, "stream", "show", stream, ok=False)


def test_the_commands_about_models_and_recipes(real: Process) -> None:
    assert run(real, "models")["default"] == "tf_efficientnet_lite0"
    assert run(real, "recipes")["presets"]["alpha_bn"] == {"norm": {"name": "alpha_bn", "alpha": 0.1}}


def test_the_commands_about_methods(real: Process) -> None:
    listed = run(real, "methods")["methods"]
    assert {each["slot"] for each in listed} == {"norm", "update", "output", "learn.method", "learn.norm"}
    assert run(real, "methods", "unmix_tns") in listed


def test_a_call_tells_what_became_of_parameters(real: Process) -> None:
    """The guard objects to any answer here; without parameters that move there is nothing to tell."""
    guard = {"entropy_floor": 0.999999, "momentum": 1.0}
    with Client(real.url) as client:
        stream = client.create_stream(recipe={"norm": {"name": "bn1"}, "update": {"name": "tent", "guard": guard}}).id
        answer = client.predict(stream, SCENES)
        assert answer.update is not None
        assert (answer.alarm, answer.update.alarm, answer.update.alarms) == ("entropy_collapse", "entropy_collapse", 1)
        assert client.predict(stream, SCENES, output="probs").alarm == "entropy_collapse"
        assert client.predict(stream, SCENES, adapt=False).update is None
        client.delete_stream(stream)
        alarms = [event for event in client.events(stream, "0-0") if event.kind == "alarm"]
        assert [(event.alarm, event.alarms, event.restored) for event in alarms] == [
            ("entropy_collapse", 1, False),
            ("entropy_collapse", 2, False),
        ]


def test_the_doctor_finds_all_well() -> None:
    """In a process of its own: what has been imported here would not be examined."""
    done = subprocess.run([COMMAND, "doctor", "--json"], check=True, capture_output=True, text=True, timeout=60)
    findings = json.loads(done.stdout)
    assert [(each["check"], each["ok"], each["mend"]) for each in findings] == [
        (check, True, "") for check in ("torch", "torchvision", "model", "embedded Redis")
    ]
