"""`normstream bench edge`: real edges and a real server, on a few photographs."""

import json

import pytest
import skimage.data
from PIL import Image
from typer.testing import CliRunner

from normstream.clients.cli import app

PHOTOGRAPHS = {"283_n02123394_cat": skimage.data.chelsea, "967_n07920052_coffee": skimage.data.coffee}


def run(*arguments: object) -> object:
    return CliRunner().invoke(app, ["bench", "edge", *map(str, arguments)])


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, load in PHOTOGRAPHS.items():
        Image.fromarray(load()).save(folder / f"{name}.jpg")
    return folder


@pytest.mark.timeout(300)
def test_every_way_to_run_an_edge(photographs, tmp_path):
    out = tmp_path / "out"
    result = run("--data", photographs, "--out", out, "--corruptions", "contrast", "--severity", 1, "--batch", 2)
    assert result.exit_code == 0, result.output
    outcomes = json.loads((out / "edge.json").read_text())["outcomes"]
    assert {each["seen"] for each in outcomes.values()} == {2}
    assert outcomes["no adaptation"]["uploaded"] == outcomes["the edge alone"]["uploaded"] == 0
    assert outcomes["cema, everything uploaded"]["uploaded"] == 2
    assert outcomes["tent at the server"]["share"] == 100
    assert "| the cloud alone |" in result.stdout


def test_data_that_is_not_there(tmp_path):
    result = run("--data", tmp_path / "none", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "--data" in result.stderr
    assert not (tmp_path / "out").exists()
