import json

import examples
import pytest
from loopback import problem, say
from typer.testing import CliRunner

from normstream.clients.cli import app

FIRST, SECOND = "9f1c2b7a5d3e4f60-0", "9f1c2b7a5d3e4f60-1"
NOTHING = {**examples.LABELLING, "labelled": 0, "duplicates": 2, "learning": None, "scores": examples.NO_SCORES}


@pytest.fixture
def run(server, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NORMSTREAM_URL", server.url)
    return lambda *arguments, stdin=None: CliRunner().invoke(
        app, ["stream", *(str(argument) for argument in arguments)], input=stdin
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "cats").mkdir()
    for name in ("a.jpg", "cats/b.png", "cats/c.webp", "cats/notes.txt"):
        (tmp_path / name).write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(result):
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return [line.split(maxsplit=1) for line in result.stdout.splitlines()]


def sent_files(seen):
    return [line.split('filename="')[1].rstrip('"') for line in seen.body.decode().splitlines() if "filename" in line]


def test_samples_are_labelled(run, server):
    server.will(say(examples.LABELLING))
    told = dict(lines(run("label", "gate-3", "zebra", FIRST, SECOND)))
    assert server.calls == ["POST /v1/streams/gate-3/labels"]
    assert server.seen[0].query == {"learn": "true"}
    assert server.seen[0].json == {"labels": [{"sample": each, "label": "zebra"} for each in (FIRST, SECOND)]}
    assert {name: value.strip() for name, value in told.items()} == {
        "stream": "gate-3",
        "labelled": "4, 1 had come before",
        "accuracy": "0.75 of 12 scored",
        "lately": "0.8 of the last 10, calibration error 0.125",
        "lessons": "7 so far, 1 now with a mean loss of 0.5",
        "classes": "1001, new: okapi",
        "memory": "4 samples, 61,440 bytes",
    }


def test_files_and_folders_are_sent(run, server, folder):
    server.will(say(examples.LABELLING))
    lines(run("label", "gate-3", "cat", "a.jpg", "cats"))
    assert sent_files(server.seen[0]) == ["a.jpg", "b.png", "c.webp"]
    assert server.seen[0].body.count(b'{"label": "cat"}') == 3


def test_labels_of_a_file(run, server, folder):
    (folder / "labels.csv").write_text(f'\ufeff{FIRST},zebra\ncats/b.png,"cat, tabby"\n', encoding="utf-8")
    server.will(say(examples.LABELLING))
    lines(run("label", "gate-3", "--from", "labels.csv"))
    first, second = server.seen[0].json["labels"]
    assert first == {"sample": FIRST, "label": "zebra"}
    assert second["label"] == "cat, tabby"


def test_labels_of_stdin(run, server):
    server.will(say(examples.LABELLING))
    lines(run("label", "gate-3", "--from", "-", stdin=f"{FIRST},zebra\n\n{SECOND},okapi\n\n"))
    assert [each["label"] for each in server.seen[0].json["labels"]] == ["zebra", "okapi"]


def test_labels_are_only_counted_when_told(run, server):
    server.will(say(NOTHING))
    told = dict(lines(run("label", "gate-3", "zebra", FIRST, "--count-only")))
    assert server.seen[0].query == {"learn": "false"}
    assert told["labelled"].strip() == "0, 2 had come before"
    assert told["accuracy"].strip() == "- of 0 scored"
    assert told.keys() == {"stream", "labelled", "accuracy"}


def test_requests_are_told_as_one(run, server):
    step = {**examples.LABELLING["learning"]["steps"][0], "loss": None, "discarded": "non_finite"}
    learning = {**examples.LABELLING["learning"], "lessons": 8, "steps": [step], "new_classes": []}
    server.will(say(examples.LABELLING), say({**examples.LABELLING, "learning": learning, "version": 46}))
    samples = [f"9f1c2b7a5d3e4f60-{index}" for index in range(5)]
    told = json.loads(run("label", "gate-3", "zebra", *samples, "--batch-size", 3, "--json").stdout)
    assert [len(seen.json["labels"]) for seen in server.seen] == [3, 2]
    assert len({seen.headers["Idempotency-Key"] for seen in server.seen}) == 2
    assert (told["version"], told["labelled"], told["duplicates"]) == (46, 8, 2)
    assert (told["learning"]["lessons"], told["learning"]["new_classes"]) == (8, ["okapi"])
    assert [each["loss"] for each in told["learning"]["steps"]] == [0.5, None]


def test_discarded_steps_are_told(run, server):
    step = {**examples.LABELLING["learning"]["steps"][0], "loss": None, "penalty": None, "discarded": "non_finite"}
    learning = {**examples.LABELLING["learning"], "steps": [step]}
    server.will(say({**examples.LABELLING, "learning": learning, "unlearnt": 2}))
    told = dict(lines(run("label", "gate-3", "zebra", FIRST)))
    assert told["lessons"].strip().endswith("1 now with a mean loss of -, 1 discarded: non_finite")
    assert told["labelled"].strip() == "4, 1 had come before, 2 not learnt from"


def test_json_is_what_the_api_says(run, server):
    server.will(say(examples.LABELLING), say({**examples.STREAM_SCORES, "learning": None}))
    assert json.loads(run("label", "gate-3", "zebra", FIRST, "--json").stdout) == examples.LABELLING
    assert json.loads(run("scores", "gate-3", "--json").stdout) == {**examples.STREAM_SCORES, "learning": None}


def test_scores_class_by_class(run, server):
    server.will(say(examples.STREAM_SCORES))
    *known, gap, header, zebra, okapi = lines(run("scores", "gate-3"))
    assert [name for name, _ in known] == ["stream", "accuracy", "lately", "lessons", "classes", "memory"]
    assert gap == []
    assert " ".join(header).split() == ["class", "labelled", "scored", "correct", "accuracy"]
    assert " ".join(zebra).split() == ["zebra", "8", "8", "6", "0.75"]
    assert " ".join(okapi).split() == ["okapi", "5", "4", "3", "0.75"]


def test_scores_before_the_first_label(run, server):
    server.will(say({**examples.STREAM_SCORES, "scores": examples.NO_SCORES, "learning": None}))
    assert [name for name, _ in lines(run("scores", "gate-3"))] == ["stream", "accuracy"]


def test_a_failure_on_the_way_says_how_far_it_came(run, server):
    server.will(say(examples.LABELLING), problem(422, "Invalid input", "There is no such sample."))
    result = run("label", "gate-3", "zebra", FIRST, SECOND, "--batch-size", 1)
    assert (result.exit_code, result.stdout) == (1, "")
    expected = "normstream: Invalid input (422): There is no such sample.; 1 of 2 labels had been sent before"
    assert result.stderr.strip() == expected


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["zebra"], None, "nothing is labelled 'zebra'"),
        ([], None, "give LABEL with samples or files, or --from"),
        (["zebra", FIRST, "--from", "-"], "", "give LABEL with samples or files, or --from"),
        (["zebra", "nowhere.jpg"], None, "'nowhere.jpg' is neither a file nor a sample's id"),
        (["zebra", "empty"], None, "there is no image"),
        (["zebra", ""], None, "'' is neither a file nor a sample's id"),
        (["--from", "-"], ",zebra\n", "'' is neither a file nor a sample's id"),
        (["zebra", FIRST, "--batch-size", "0"], None, "--batch-size"),
        (["--from", "nowhere.csv"], None, "nowhere.csv"),
        (["--from", "-"], "", "there is no line"),
        (["--from", "-"], f"{FIRST},zebra\n{SECOND}\n", "line 2 has 1 fields; give SAMPLE_OR_FILE,LABEL"),
        (["--from", "-"], "sample,label\n", "'sample' is neither"),
        (["--from", "-"], f'{FIRST},"zebra{" " * 2**17}', "is no CSV: field larger"),
    ],
)
def test_wrong_usage_sends_nothing(run, server, folder, arguments, stdin, message):
    (folder / "photo.png").write_bytes(b"in the working directory, which is not meant")
    (folder / "empty").mkdir()
    result = run("label", "gate-3", *arguments, stdin=stdin)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert server.seen == []


def test_a_list_in_another_encoding_is_refused_and_not_misread(run, server, folder):
    (folder / "labels.csv").write_bytes(f"{FIRST},Gr\xfc\xdfe\n".encode("latin-1"))
    result = run("label", "gate-3", "--from", "labels.csv")
    assert result.exit_code == 2
    assert "no UTF-8" in result.stderr
    assert server.seen == []
