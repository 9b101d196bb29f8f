"""`normstream bench continual` as people use it."""

import json

import pytest
from test_bench_continual import folder_of
from typer.testing import CliRunner

from normstream.clients.cli import app


def run(*arguments: object) -> object:
    return CliRunner().invoke(app, ["bench", "continual", *map(str, arguments)])


def test_one_entrant(tmp_path):
    data, out = folder_of(tmp_path / "data"), tmp_path / "out"
    result = run("--data", data, "--out", out, "--entrant", "er_ace bn", "--buffer", 8, "--seeds", 1)
    assert result.exit_code == 0, result.output
    assert "er_ace bn" in result.stdout
    [measured] = json.loads((out / "results.json").read_text())["runs"]
    assert (measured["buffer"], measured["seed"], len(measured["accuracies"])) == (8, 0, 2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--entrant", "magic"], "'magic' is none of er_ace bn apart"),
        ([], "there is no"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path, arguments, told):
    result = run("--data", tmp_path / "none", "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 1
