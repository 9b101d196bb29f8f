import io
import json
import math

import examples
import numpy as np
import pytest
from loopback import Reply, problem, say
from typer.testing import CliRunner

from normstream.clients.cli import app


@pytest.fixture
def run(server, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NORMSTREAM_URL", server.url)
    return lambda *arguments: CliRunner().invoke(
        app, ["stream", "predict", "gate-3", *(str(argument) for argument in arguments)]
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    for name in ("b.JPG", "a.png", "inner/c.webp", "notes.txt", "d[bold].jpeg"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def values(probabilities, step=1):
    buffer = io.BytesIO()
    np.save(buffer, np.array(probabilities, np.float32))
    headers = {
        "Normstream-Step": str(step),
        "Normstream-Version": "2",
        "Normstream-Adapted": "true",
        "Normstream-Samples": f"000000000000000{step}",
    }
    return Reply(200, buffer.getvalue(), headers)


def sent_files(seen):
    return [line.split('filename="')[1].rstrip('"') for line in seen.body.decode().splitlines() if "filename" in line]


def test_one_row_per_image(run, server, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)  # Names that fit a terminal.
    server.will(say(examples.prediction(4)))
    result = run(folder.name)
    assert result.exit_code == 0, result.output
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["file", "label", "probability", "entropy", "sample"]
    names = ["a.png", "b.JPG", "d[bold].jpeg", "inner/c.webp"]
    told = ["zebra", "0.930", "0.410", "9f1c2b7a5d3e4f60-0"]
    assert [row.split() for row in rows[:4]] == [[f"{folder.name}/{name}", *told] for name in names]
    assert rows[4].split() == ["stream", "gate-3:", "adapted", "to", "step", "42,", "version", "44"]
    assert server.seen[0].query == {"adapt": "true", "top_k": "5", "output": "topk"}


def test_json(run, server, folder):
    server.will(say(examples.PREDICTION))
    printed = json.loads(run(folder / "a.png", "--json", "--top-k", 1).stdout)
    image = {"file": str(folder / "a.png"), **examples.PREDICTION["predictions"][0]}
    state = {"stream": "gate-3", "step": 42, "version": 44, "adapted": True}
    assert printed == {**state, "predictions": [image], "alarms": []}
    assert server.seen[0].query["top_k"] == "1"


def test_batches(run, server, folder):
    server.will(say(examples.prediction(3)), say({**examples.prediction(2), "step": 43}))
    result = run(folder / "notes.txt", folder, "--batch-size", 3, "--no-adapt", "--json")
    assert json.loads(result.stdout)["step"] == 43
    assert [sent_files(seen) for seen in server.seen] == [["notes.txt", "a.png", "b.JPG"], ["d[bold].jpeg", "c.webp"]]
    assert {seen.query["adapt"] for seen in server.seen} == {"false"}
    assert len({seen.headers["Idempotency-Key"] for seen in server.seen}) == 2


def test_probabilities_are_saved(run, server, folder):
    first, second = [[0.25, 0.75, 0.0]] * 3, [[0.5, 0.0, 0.5]]
    server.will(values(first), values(second, step=2))
    result = run(folder, "--output", folder / "probs.npy", "--batch-size", 3, "--top-k", 2, "--json")
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(np.load(folder / "probs.npy"), np.array(first + second, np.float32))
    last = json.loads(result.stdout)["predictions"][3]
    assert last["top"] == [
        {"class": 0, "label": "class 0", "probability": 0.5},
        {"class": 2, "label": "class 2", "probability": 0.5},
    ]
    assert last["sample"] == "0000000000000002-0"
    assert last["entropy"] == pytest.approx(math.log(2))
    assert server.seen[0].headers["Accept"] == "application/x-npy"


def test_a_failure_on_the_way_says_how_far_it_came(run, server, folder):
    server.will(say(examples.prediction(2)), problem(422, "Bad image", "images[0] is no image."))
    result = run(folder, "--batch-size", 2)
    assert result.exit_code == 1
    assert result.stdout == ""
    expected = "normstream: Bad image (422): images[0] is no image.; 2 of 4 images had been predicted before"
    assert result.stderr.strip() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}/inner/empty"], "there is no image"),
        (["{folder}/nowhere.jpg"], "does not exist"),
        (["{folder}", "--output", "{folder}/nowhere/probs.npy"], "there is no folder"),
        (["{folder}", "--output", "{folder}"], "is a directory"),
        (["{folder}", "--batch-size", "0"], "--batch-size"),
        (["{folder}", "--top-k", "101"], "--top-k"),
        ([], "FILES_OR_FOLDERS"),
    ],
)
def test_wrong_usage_sends_nothing(run, server, folder, arguments, message):
    (folder / "inner" / "empty").mkdir()
    result = run(*(argument.format(folder=folder) for argument in arguments))
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert server.seen == []
