"""The commands against a real server on loopback."""

import json

import examples
import pytest
from loopback import Reply, events, problem, say, unused_url
from typer.testing import CliRunner

from normstream.clients.cli import app


@pytest.fixture
def run(server, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NORMSTREAM_URL", server.url)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(result):
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def fail(result, code=1):
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    return result.stderr


STREAM_CALLS = [
    (("stream", "create", "gate-3"), "POST /v1/streams"),
    (("stream", "show", "gate-3"), "GET /v1/streams/gate-3"),
    (("stream", "reset", "gate-3"), "POST /v1/streams/gate-3/reset"),
    (("stream", "restore", "gate-3", "snap-1"), "POST /v1/streams/gate-3/restore"),
    (("stream", "fork", "gate-3", "gate-4"), "POST /v1/streams/gate-3/fork"),
]


@pytest.mark.parametrize(("arguments", "call"), STREAM_CALLS)
def test_a_stream_is_shown(run, server, arguments, call):
    server.will(say(examples.STREAM))
    lines = dict(line.split(maxsplit=1) for line in succeed(run(*arguments)).splitlines())
    assert lines["id"].strip() == "gate-3"
    assert lines["recipe"].strip() == "alpha_bn"
    assert lines["idle_ttl_s"].strip() == "-"
    assert server.calls == [call]


@pytest.mark.parametrize(("arguments", "call"), STREAM_CALLS)
def test_a_stream_is_printed_as_the_api_has_it(run, server, arguments, call):
    server.will(say(examples.STREAM))
    assert json.loads(succeed(run(*arguments, "--json"))) == examples.STREAM


@pytest.mark.parametrize(
    ("arguments", "answer", "printed"),
    [
        (("models",), examples.MODELS, examples.MODELS),
        (("recipes",), examples.RECIPES, examples.RECIPES),
        (("methods",), examples.METHODS, examples.METHODS),
        (("methods", "alpha_bn"), examples.METHODS, examples.METHOD),
        (("stream", "list"), {"streams": [examples.STREAM], "next": None}, [examples.STREAM]),
        (("stream", "list"), {"streams": [], "next": None}, []),
        (("stream", "snapshot", "gate-3"), examples.SNAPSHOT, examples.SNAPSHOT),
        (("stream", "snapshots", "gate-3"), {"snapshots": [examples.SNAPSHOT]}, [examples.SNAPSHOT]),
        (("edge", "list"), {"edges": [examples.EDGE], "next": None}, [examples.EDGE]),
        (("edge", "show", "gate-3"), examples.EDGE, examples.EDGE),
    ],
)
def test_json_is_what_the_api_says(run, server, arguments, answer, printed):
    server.will(say(answer))
    assert json.loads(succeed(run(*arguments, "--json"))) == printed


@pytest.mark.parametrize(
    ("arguments", "answer", "words"),
    [
        (("models",), examples.MODELS, ["tf_efficientnet_lite0 (default)", "4,652,008", "3x224x224"]),
        (("recipes",), examples.RECIPES, ["alpha_bn", '"alpha": 0.1']),
        (("methods",), examples.METHODS, ["norm", "alpha_bn", "bn1", examples.METHOD["summary"], "moments"]),
        (
            ("methods", "alpha_bn"),
            examples.METHODS,
            [*examples.METHOD["text"], "https://arxiv.org/abs/2110.04065", "[0, 1]", "batch normalisation"],
        ),
        (("methods", "bn1"), examples.METHODS, ["none"]),
        (("stream", "list"), {"streams": [examples.STREAM]}, ["gate-3", "alpha_bn", "41", "2026-11-21 08:03:11"]),
        (("stream", "list"), {"streams": []}, ["none"]),
        (("stream", "snapshot", "gate-3"), examples.SNAPSHOT, ["snap-7d3f", "168900"]),
        (("stream", "snapshots", "gate-3"), {"snapshots": [examples.SNAPSHOT]}, ["snap-7d3f", "168,900"]),
        (("edge", "list"), {"edges": [examples.EDGE]}, ["group-north", "alpha_bn", "512", "2026-11-21 08:03:11"]),
        (("edge", "list"), {"edges": [{**examples.EDGE, "last_seen": None}]}, ["gate-3"]),
        (("edge", "list"), {"edges": []}, ["none"]),
        (
            ("edge", "show", "gate-3"),
            examples.EDGE,
            ["samples pending  ", "900 unreliable, 1800 uninformative", "0.875"],
        ),
        (("edge", "show", "gate-3"), {**examples.EDGE, "report": None}, ["report  "]),
    ],
)
def test_tables_show_what_matters(run, server, arguments, answer, words):
    server.will(say(answer))
    output = succeed(run(*arguments))
    assert [word for word in words if word not in output] == []


def test_a_recipe_goes_by_all_its_members(run, server):
    learn = {"norm": {"name": "adab2n"}, "method": {"name": "er_ace"}, "descent": {"name": "sgd"}, "batch": 10}
    without = {**learn, "norm": None}
    server.will(*(say({**examples.STREAM, "recipe": {**examples.RECIPE, "learn": each}}) for each in (learn, without)))
    lines = [
        dict(line.split(maxsplit=1) for line in succeed(run("stream", "show", "a")).splitlines()) for _ in range(2)
    ]
    assert [each["recipe"].strip() for each in lines] == ["alpha_bn x er_ace x adab2n", "alpha_bn x er_ace"]


def test_an_unknown_method_is_a_usage_error_that_names_the_others(run, server):
    server.will(say(examples.METHODS))
    error = fail(run("methods", "alpha"), code=2)
    assert "'alpha'" in error
    assert "alpha_bn, bn1" in error


def test_create_sends_what_is_given(run, server):
    server.will(say(examples.STREAM, 201))
    recipe = json.dumps(examples.RECIPE)
    succeed(run("stream", "create", "a", "--recipe", recipe, "--model", "m", "--idle-ttl-s", 60))
    assert server.seen[0].json == {"id": "a", "model": "m", "recipe": examples.RECIPE, "idle_ttl_s": 60}


def test_create_takes_a_preset(run, server):
    server.will(say(examples.STREAM, 201))
    succeed(run("stream", "create", "--recipe", "unmix_tns"))
    assert server.seen[0].json["recipe"] == "unmix_tns"
    assert server.seen[0].json["id"]


def test_a_recipe_that_is_no_json_is_a_usage_error(run, server):
    assert "'{norm' is no JSON" in fail(run("stream", "create", "--recipe", "{norm"), code=2)
    assert server.seen == []


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        (("stream", "delete", "gate-3"), "DELETE /v1/streams/gate-3"),
        (("snapshot", "delete", "snap-1"), "DELETE /v1/snapshots/snap-1"),
        (("edge", "delete", "gate-3"), "DELETE /v1/edges/gate-3"),
    ],
)
def test_delete(run, server, arguments, call):
    server.will(Reply(204), Reply(204))
    assert succeed(run(*arguments)).split() == ["deleted", arguments[-1]]
    assert json.loads(succeed(run(*arguments, "--json"))) == {"deleted": arguments[-1]}
    assert server.calls == [call] * 2


def test_download(run, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server.will(Reply(200, b"state"))
    succeed(run("snapshot", "download", "snap-1"))
    assert (tmp_path / "snap-1.safetensors").read_bytes() == b"state"


def test_download_replaces_a_file_only_when_told(run, server, tmp_path):
    target = tmp_path / "kept"
    target.write_bytes(b"old")
    assert "--force" in fail(run("snapshot", "download", "snap-1", target), code=2)
    assert target.read_bytes() == b"old"
    server.will(Reply(200, b"new"))
    printed = json.loads(succeed(run("snapshot", "download", "snap-1", target, "--force", "--json")))
    assert printed == {"snapshot": "snap-1", "file": str(target), "bytes": 3}
    assert target.read_bytes() == b"new"


def test_a_failed_download_leaves_no_file(run, server, tmp_path):
    server.will(problem(404, "Unknown snapshot"))
    fail(run("snapshot", "download", "snap-1", tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_download_that_cannot_be_written_is_one_line(run, server, tmp_path):
    server.will(Reply(200, b"state"))
    error = fail(run("snapshot", "download", "snap-1", tmp_path / "nowhere" / "file"))
    assert "No such file or directory" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(("options", "sid"), [((), "snap-1"), (("--id", "snap-2"), "snap-2")])
def test_upload(run, server, tmp_path, options, sid):
    (tmp_path / "snap-1.safetensors").write_bytes(b"state")
    server.will(say(examples.SNAPSHOT, 201))
    succeed(run("snapshot", "upload", tmp_path / "snap-1.safetensors", *options))
    assert server.calls == [f"PUT /v1/snapshots/{sid}"]
    assert server.seen[0].body == b"state"


DELETED = "event: deleted\ndata: {}"
STEP = {"step": 3, "version": 5, "images": 16, "entropy": 0.4123, "drift": {"bn1": 0.25, "layer[0].bn": 1.5}}


def test_events_are_followed(run, server):
    server.will(events(f"id: 1\nevent: step\ndata: {json.dumps(STEP)}", DELETED))
    assert succeed(run("stream", "events", "gate-3", "--last-event-id", "0")).splitlines() == [
        "step  step 3  version 5  images 16  entropy 0.4123  largest drift 1.5 at layer[0].bn",
        "deleted",
    ]
    assert server.seen[0].headers["Last-Event-ID"] == "0"


def test_alarms_are_told(run, server):
    step = {"step": 3, "version": 5, "moved": False, "alarm": "entropy_collapse", "alarms": 7}
    alarm = {**step, "restored": True}
    server.will(
        events(f"event: step\ndata: {json.dumps(step)}", f"event: alarm\ndata: {json.dumps(alarm)}"),
        events(DELETED),
    )
    assert succeed(run("stream", "events", "gate-3")).splitlines()[:2] == [
        "step  step 3  version 5  entropy_collapse, 7 so far",
        "alarm  step 3  version 5  entropy_collapse, 7 so far  last good parameters restored",
    ]


def test_lessons_are_told(run, server):
    lesson = {"step": 3, "version": 5, "samples": 10, "loss": 0.53125, "new_classes": ["okapi"], "discarded": None}
    spoilt = {**lesson, "loss": None, "new_classes": [], "discarded": "non_finite"}
    server.will(events(*(f"event: learnt\ndata: {json.dumps(each)}" for each in (lesson, spoilt)), DELETED))
    assert succeed(run("stream", "events", "gate-3")).splitlines()[:2] == [
        "learnt  step 3  version 5  samples 10  loss 0.5312  new okapi",
        "learnt  step 3  version 5  samples 10  discarded: non_finite",
    ]


def test_events_are_printed_one_a_line(run, server):
    server.will(events(f"id: 1\nevent: step\ndata: {json.dumps(STEP)}", DELETED))
    first, last = map(json.loads, succeed(run("stream", "events", "gate-3", "--json")).splitlines())
    assert (first["kind"], first["id"], first["data"]) == ("step", "1", STEP)
    assert last["kind"] == "deleted"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_refusal_is_one_line_on_stderr(run, server, options):
    server.will(problem(404, "Unknown stream", "There is no stream 'gate-4'.\nCreate it."))
    error = fail(run("stream", "show", "gate-4", *options))
    assert error == "normstream: Unknown stream (404): There is no stream 'gate-4'. Create it.\n"


def test_nobody_there_is_one_line_on_stderr(run):
    error = fail(run("models", "--url", unused_url()))
    assert "is the server running?" in error
    assert len(error.splitlines()) == 1


def test_the_option_beats_the_environment(run, server, monkeypatch):
    monkeypatch.setenv("NORMSTREAM_URL", unused_url())
    server.will(say(examples.MODELS))
    succeed(run("models", "--url", server.url))


@pytest.mark.parametrize("arguments", [("stream", "show"), ("stream", "shw", "a"), ("models", "--what")])
def test_wrong_usage_exits_2(run, arguments):
    fail(run(*arguments), code=2)
