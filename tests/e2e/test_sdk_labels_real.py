"""Labels that come late, by way of the clients and the command line, against the real server."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_cifar import COLOURS, made_up_cifar
from PIL import Image
from servers import Process, new_id
from typer.testing import CliRunner

from normstream.clients import AsyncClient, Client, Conflict, InvalidInput, Label
from normstream.clients.cli import app

HEAD = {
    "learns": "head",
    "norm": None,
    "descent": {"lr": 0.1},
    "replay": {"keep": "images", "capacity": 50},
    "batch": 4,
}
LEARNS = {"norm": {"name": "source"}, "learn": {**HEAD, "unlabelled": "images"}}
FORGETS = {"norm": {"name": "source"}, "learn": HEAD}  # nothing is kept of images without labels


def scenes(count: int, colour: int = 0) -> np.ndarray:
    """Images of one kind: of one colour, and some noise."""
    noise = np.random.default_rng(colour).normal(0, 25, (count, 40, 40, 3))
    return (COLOURS[colour] + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def server(tiny_option: str) -> Iterator[Process]:
    with tempfile.TemporaryDirectory(prefix="ns-") as path:
        process = Process(Path(path) / "server.log", "--model", tiny_option)
        try:
            yield process.ready()
            assert process.stop() == 0
        finally:
            process.kill()


@pytest.fixture
def client(server: Process) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


def test_a_stream_learns_a_class_from_labels_that_come_late(client: Client) -> None:
    stream = client.create_stream(new_id(), recipe=LEARNS).id
    answer = client.predict(stream, scenes(8), adapt=False)
    assert answer.samples == tuple(image.sample for image in answer.predictions)
    told = client.label(stream, dict.fromkeys(answer.samples, "gold"))
    assert (told.labelled, told.duplicates, told.unlearnt) == (8, 0, 0)
    assert (told.scores.scored, told.scores.correct) == (8, 0)
    assert told.learning is not None
    assert told.learning.new_classes == ("gold",)
    assert [step.samples for step in told.learning.steps] == [4, 4]

    for _ in range(5):
        client.label_images(stream, scenes(8), ["gold"] * 8)
    later = client.predict(stream, scenes(3), adapt=False, top_k=1)
    assert {image.top[0].label for image in later.predictions} == {"gold"}
    told = client.scores(stream)
    assert told.classes[-1] == "gold"
    assert (told.scores.labelled, told.scores.scored) == (48, 48)
    assert told.scores.correct > 16
    assert told.learning is not None
    assert (told.learning.lessons, told.learning.classes, told.learning.kept) == (12, 8, 48)
    assert told.learning.kept_bytes > 0

    client.delete_stream(stream)
    lessons = [event for event in client.events(stream, "0-0") if event.kind == "learnt"]
    assert [(event.samples, event.new_classes) for event in lessons] == [(4, ("gold",)), *[(4, ())] * 11]


def test_a_label_counts_once(client: Client) -> None:
    stream = client.create_stream(new_id(), recipe=LEARNS).id
    first, second = client.predict(stream, scenes(2), adapt=False).samples
    assert client.label(stream, {first: "3"}).labelled == 1
    again = client.label(stream, {first: "3", second: "4"})
    assert (again.labelled, again.duplicates) == (1, 1)
    with pytest.raises(Conflict):
        client.label(stream, {first: "4"})
    assert client.scores(stream).scores.labelled == 2


def test_images_under_one_key_count_once(client: Client) -> None:
    stream = client.create_stream(new_id(), recipe=FORGETS).id
    pairs = [(each, "3") for each in scenes(2)]
    first = client.label(stream, pairs, idempotency_key="noon")
    again = client.label(stream, pairs, idempotency_key="noon")
    assert [(each.labelled, each.duplicates) for each in (first, again)] == [(2, 0), (0, 2)]
    assert client.label(stream, pairs).labelled == 2
    assert client.stream(stream).version == again.version + 1


def test_labels_of_every_form_go_together(client: Client, tmp_path: Path) -> None:
    stream = client.create_stream(new_id(), recipe=LEARNS).id
    path = tmp_path / "a.png"
    Image.fromarray(scenes(1)[0]).save(path)
    answer = client.predict(stream, scenes(2), adapt=False, output="probs")
    assert answer.values is not None
    first, second = answer.samples or ()
    labels = [
        (first, 3),
        Label(sample=second, label="3", index=3),
        (path, "4"),
        (path.read_bytes(), "4"),
        Label(image=str(path), index=4),
        (scenes(1)[0], "4"),
    ]
    told = client.label(stream, labels)
    assert [(each.label, each.labelled) for each in told.scores.classes] == [("3", 2), ("4", 4)]
    assert told.learning is not None
    assert (told.learning.new_classes, told.learning.kept) == ((), 6)
    with pytest.raises(InvalidInput):
        client.label(stream, [Label(image=path, label="3", index=4)])


def test_labels_can_be_counted_and_not_learnt(client: Client) -> None:
    stream = client.create_stream(new_id(), recipe="ema").id
    (sample,) = client.predict(stream, scenes(1)).samples
    told = client.label(stream, {sample: 0})
    assert (told.labelled, told.learning) == (1, None)

    stream = client.create_stream(new_id(), recipe=LEARNS).id
    told = client.label_images(stream, scenes(2), [0, 1], learn=False)
    assert (told.labelled, told.scores.scored) == (2, 2)
    assert told.learning is not None
    assert (told.learning.lessons, told.learning.kept, told.learning.steps) == (0, 0, ())


def test_images_that_were_not_kept_are_told(client: Client) -> None:
    stream = client.create_stream(new_id(), recipe=FORGETS).id
    answer = client.predict(stream, scenes(2), adapt=False)
    told = client.label(stream, dict.fromkeys(answer.samples, 1))
    assert (told.labelled, told.unlearnt) == (2, 2)


async def test_the_asynchronous_client(server: Process) -> None:
    async with AsyncClient(server.url) as client:
        stream = (await client.create_stream(new_id(), recipe=LEARNS)).id
        answer = await client.predict(stream, scenes(2), adapt=False)
        assert (await client.label(stream, dict.fromkeys(answer.samples, 1))).labelled == 2
        assert (await client.label_images(stream, scenes(3), [1, 2, 3])).labelled == 3
        assert (await client.scores(stream)).scores.labelled == 5


def run(server: Process, *words: object, stdin: str | None = None) -> Any:
    result = CliRunner().invoke(app, ["stream", *map(str, words), "--url", server.url, "--json"], input=stdin)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_commands(server: Process, tmp_path: Path) -> None:
    for number, scene in enumerate(scenes(3)):
        Image.fromarray(scene).save(tmp_path / f"{number}.png")
    stream = run(server, "create", "--recipe", json.dumps(LEARNS))["id"]
    predicted = run(server, "predict", stream, tmp_path, "--no-adapt")["predictions"]
    samples = [each["sample"] for each in predicted]
    told = run(server, "label", stream, "gold", *samples, tmp_path, "--batch-size", 4)
    assert (told["labelled"], told["learning"]["new_classes"]) == (6, ["gold"])
    lines = "".join(f"{sample},gold\n" for sample in samples)
    assert run(server, "label", stream, "--from", "-", stdin=lines)["duplicates"] == 3
    assert run(server, "label", stream, "gold", tmp_path / "0.png", "--count-only")["learning"]["steps"] == []
    told = run(server, "scores", stream)
    assert told["scores"]["classes"][0]["label"] == "gold"
    assert told["scores"]["labelled"] == 7
    assert told["learning"]["kept"] == 6


def test_the_example_runs_by_itself(tmp_path: Path) -> None:
    """A server of its own, five pairs of classes, the table and the picture."""
    made_up_cifar(tmp_path, train=5, test=2)
    words = [sys.executable, "-m", "normstream.clients.examples.five_pairs", "--data", tmp_path]
    done = subprocess.run(
        [*words, "--images", "9", "--plot", tmp_path / "curves.png"],
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "forgotten" in done.stdout
    assert "ship, truck" in done.stdout
    said = " ".join(done.stdout.split())
    assert "45 labels; asked before it learnt" in said
    assert " of 36. It took 5 lessons; its memory holds 45 images" in said
    assert (tmp_path / "curves.png").is_file()
