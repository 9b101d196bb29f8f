"""The demo's parts that need no server: what the camera sees, in which weather, and the table and picture of it."""

import io
import socket
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from normstream.clients.cli import app
from normstream.clients.demo import command, picture, plot, report, server, trial
from normstream.clients.demo.footage import Footage
from normstream.clients.demo.results import Observation, Results
from normstream.clients.demo.scene import PHOTOGRAPHS, SIDE, Camera, photograph
from normstream.clients.demo.weather import PHASES, Phase

RECIPES = ["source", "alpha_bn", "ema"]
SPOILING = [phase for phase in PHASES if phase.corruption]


@pytest.fixture(scope="module")
def camera():
    return Camera.on_round(seed=0)


@pytest.fixture(scope="module")
def footage(camera):
    return Footage(camera, PHASES, frames=6, seed=0)


@pytest.fixture
def results(footage):
    """Made up: each recipe agrees more often than the one before it."""
    seen = Results(RECIPES, [phase.name for phase in PHASES])
    for batch in footage.batches(4):
        for number, recipe in enumerate(RECIPES):
            agreed = np.arange(len(batch.clean)) <= number
            seen.add(Observation(recipe, batch.phase, agreed, np.full(agreed.size, 1.5), seconds=0.1))
    return seen


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments):
        raise AssertionError(f"the demo reached for the network: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_come_with_scikit_image(name, no_network):
    photo = photograph(name)
    assert photo.mode == "RGB"
    assert min(photo.size) >= SIDE


def test_frames_are_pixels_of_the_models_size(camera):
    for index in range(0, 3000, 37):
        frame = camera.frame(index)
        assert (frame.shape, frame.dtype) == ((SIDE, SIDE, 3), np.uint8)
        assert frame.std() > 10


def test_frames_depend_on_the_seed_and_the_index_alone(camera):
    assert np.array_equal(camera.frame(5), Camera.on_round(seed=0).frame(5))
    assert not np.array_equal(camera.frame(5), Camera.on_round(seed=1).frame(5))


def test_the_camera_goes_round():
    camera = Camera.on_round(seed=0, stay=2)
    assert [camera.place(i) for i in range(13)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 0]


def test_the_camera_moves_smoothly():
    camera = Camera.on_round(seed=0, stay=50)
    frames = [camera.frame(i).astype(float) for i in range(8)]
    steps = [np.abs(b - a).mean() for a, b in pairwise(frames)]
    assert min(steps) > 0
    assert max(steps) < np.abs(frames[0] - camera.frame(50)).mean() / 2


@pytest.mark.parametrize("phase", SPOILING, ids=lambda phase: phase.name)
def test_weather_changes_the_image_and_nothing_of_its_form(camera, phase):
    frame = camera.frame(0)
    spoilt = phase.spoil(frame, seed=3)
    assert (spoilt.shape, spoilt.dtype) == (frame.shape, frame.dtype)
    assert np.abs(spoilt.astype(float) - frame).mean() > 3
    assert np.array_equal(frame, camera.frame(0))


@pytest.mark.parametrize("phase", SPOILING, ids=lambda phase: phase.name)
def test_weather_depends_on_its_seed_alone(camera, phase):
    frame = camera.frame(0)
    np.random.seed(1)
    first = phase.spoil(frame, seed=3)
    drawn = np.random.random()
    assert np.array_equal(first, phase.spoil(frame, seed=3))
    np.random.seed(1)
    assert drawn == np.random.random()


def test_a_clear_view_is_the_frame_itself(camera):
    frame = camera.frame(0)
    assert Phase("clear").spoil(frame, seed=0) is frame


def test_every_frame_comes_once_and_in_order(footage):
    batches = list(footage.batches(4))
    assert [(batch.phase, len(batch.clean)) for batch in batches] == [
        (phase.name, size) for phase in PHASES for size in (4, 2)
    ]
    clean = np.concatenate([batch.clean for batch in batches])
    spoilt = np.concatenate([batch.spoilt for batch in batches])
    assert len(clean) == len(spoilt) == len(footage) == 6 * len(PHASES)
    assert np.array_equal(clean[9], footage.clean(9))
    assert np.array_equal(spoilt[9], footage.spoilt(9))


def test_samples_show_one_place(footage):
    assert np.array_equal(footage.sample(0), footage.clean(0))
    assert np.array_equal(footage.sample(6), footage.clean(36))


def test_phases_have_names_of_their_own():
    assert len({phase.name for phase in PHASES}) == len(PHASES)


def test_scores_are_means_over_frames(results):
    score = results.score("ema", "fog")
    assert score.agreement == pytest.approx(5 / 6)  # 3 of 4 frames, then 2 of 2
    assert score.entropy == pytest.approx(1.5)
    assert score.images_per_s == pytest.approx(6 / 0.2)
    assert results.score("ema", "hail") is None


def test_the_table_shows_every_score(results):
    console = Console(file=io.StringIO(), width=80)
    console.print(report.table(results))
    shown = console.file.getvalue()
    assert all(word in shown for word in (*RECIPES, "fog", "83%", "1.50", "30"))
    assert max(map(len, shown.splitlines())) <= 80


def test_the_glance_fits_a_small_terminal(results):
    console = Console(file=io.StringIO(), width=80)
    console.print(report.glance(results))
    shown = console.file.getvalue()
    assert "83%" in shown
    assert len(shown.splitlines()) < 20


@pytest.mark.parametrize("view", [report.glance, report.table])
def test_the_tables_begin_empty(view):
    console = Console(file=io.StringIO(), width=80)
    console.print(view(Results(RECIPES, ["clear"])))
    assert "-" in console.file.getvalue()


@pytest.mark.parametrize("suffix", picture.SUFFIXES)
def test_the_picture_is_written(tmp_path, footage, results, suffix):
    path = tmp_path / f"demo{suffix}"
    plot.draw(footage, results, path)
    assert path.stat().st_size > 50_000


def test_the_reference_stands_first_and_others_follow_that_every_batch_norm_model_takes():
    presets = {name: {} for name in ("alpha_bn", "bn1", "ln_align", "source", "tent", "unmix_tns")}
    assert trial.contenders(presets) == ["source", "alpha_bn", "bn1", "unmix_tns"]


def test_every_recipe_of_the_demo_is_a_preset_of_a_server():
    """Read as text: the clients' tests import no torch."""
    members = Path(trial.__file__).parents[2] / "adaptation" / "norm"
    assert {file.stem for file in members.glob("*.py")} > set(trial.SHOWN)


@pytest.mark.parametrize("file", ["demo.txt", "no-such-folder/demo.png"])
def test_a_picture_that_could_not_be_written_is_refused_at_once(tmp_path, monkeypatch, file):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(typer.BadParameter):
        command.demo(plot=tmp_path / file)


def test_the_command_line_has_the_demo():
    result = CliRunner().invoke(app, ["demo", "--help"])
    assert result.exit_code == 0
    assert all(option in result.stdout for option in ("--serve", "--plot", "--frames", "--batch", "--seed"))


def test_a_server_that_does_not_start_shows_its_log_and_leaves_nothing(tmp_path, monkeypatch):
    broken = tmp_path / "normstream"
    broken.write_text("#!/bin/sh\necho no models today\nexit 7\n")
    broken.chmod(0o755)
    monkeypatch.setattr(server.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(server.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    console = Console(file=io.StringIO())
    with pytest.raises(server.ServerStartError, match="status 7"), server.local_server(console):
        pass
    assert "no models today" in console.file.getvalue()
    assert list((tmp_path / "temporary").iterdir()) == []
