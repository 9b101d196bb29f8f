"""The example's parts that need no server that learns."""

import io
import re
import sys
from pathlib import Path

import examples
import numpy as np
import pytest
import typer
from loopback import problem, say
from made_up_cifar import arrays, made_up_cifar, picture
from rich.console import Console
from typer.testing import CliRunner

from normstream.clients import Client
from normstream.clients.examples import curves, five_pairs
from normstream.clients.examples.accuracies import forgetting, table
from normstream.clients.examples.cifar import CLASSES, PAIRS, DataError, Pictures, read

PAGE = Path(__file__).parents[2] / "docs" / "five-pairs.md"
ACCURACIES = [[0.5], [0.75, 1.0], [0.25, 0.5, 1.0], [0.25, 0.25, 0.5, 1.0], [0.0, 0.5, 0.5, 0.75, 1.0]]


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


app = typer.Typer(add_completion=False)
app.command()(five_pairs.five_pairs)


def test_every_option_is_documented():
    rows = re.findall(r"^\| (`--.+?`) \| ", PAGE.read_text(), re.M)
    documented = {name for row in rows for name in re.findall(r"--[\w-]+", row)}
    command = typer.main.get_command(app)
    assert documented == {name for each in command.params for name in each.opts if name.startswith("--")}


def test_pictures_come_pair_by_pair_with_their_names(tmp_path):
    pairs = read(made_up_cifar(tmp_path) / "train.npz")
    assert [set(pictures.classes) for pictures in pairs] == [set(pair) for pair in PAIRS]
    assert [len(pictures) for pictures in pairs] == [8] * 5
    for pictures in pairs:
        for file, name in zip(pictures.files, pictures.classes, strict=True):
            assert file in {picture(CLASSES.index(name), number) for number in range(40)}


def test_pictures_are_mixed_the_same_way_each_time(tmp_path):
    path = made_up_cifar(tmp_path, train=20) / "train.npz"
    assert read(path) == read(path)
    classes = read(path)[0].classes
    assert list(classes) not in (sorted(classes), ["airplane", "automobile"] * 20)


def test_fewer_pictures_are_the_first_of_all(tmp_path):
    path = made_up_cifar(tmp_path) / "train.npz"
    for few, all_of_them in zip(read(path, 3), read(path), strict=True):
        assert (few.files, few.classes) == (all_of_them.files[:3], all_of_them.classes[:3])


def test_every_picture_is_in_one_batch():
    pictures = Pictures((b"a", b"b", b"c"), ("x", "y", "z"))
    assert list(pictures.batches(2)) == [Pictures((b"a", b"b"), ("x", "y")), Pictures((b"c",), ("z",))]


def test_a_folder_without_the_files_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*train.npz: .* give the folder of CIFAR-10"):
        read(tmp_path / "train.npz")


@pytest.mark.parametrize("content", [b"", b"no arrays", b"PK\x03\x04 and no more", npy(np.zeros(3))])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "train.npz").write_bytes(content)
    with pytest.raises(DataError, match="cannot read"):
        read(tmp_path / "train.npz")


def test_a_file_without_labels_is_refused(tmp_path):
    given = arrays(2)
    del given["labels"]
    np.savez(tmp_path / "train.npz", **given)
    with pytest.raises(DataError, match="labels"):
        read(tmp_path / "train.npz")


def test_a_pair_without_pictures_is_refused(tmp_path):
    given = arrays(2)
    given["labels"] = given["labels"] % 8
    np.savez(tmp_path / "train.npz", **given)
    with pytest.raises(DataError, match="no image of ship or truck, the classes 8 and 9"):
        read(tmp_path / "train.npz")


def test_what_is_forgotten_is_counted_from_the_best():
    assert forgetting(ACCURACIES) == [0.75, 0.5, 0.5, 0.25]
    assert forgetting(ACCURACIES[:1]) == []


@pytest.mark.parametrize("pairs", range(1, 6))
def test_the_table_fits_a_small_terminal(pairs):
    console = Console(file=io.StringIO(), width=80)
    console.print(table(ACCURACIES[:pairs]))
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    assert all(name in shown for name in CLASSES)


def test_the_table_shows_accuracies_their_means_and_what_was_forgotten():
    console = Console(file=io.StringIO(), width=100)
    console.print(table(ACCURACIES))
    rows = {
        words[0]: words for line in console.file.getvalue().splitlines() if (words := line.replace(" %", "").split())
    }
    assert rows["airplane,"] == ["airplane,", "automobile", "50.0", "50.0"]
    assert rows["ship,"] == ["ship,", "truck", "0.0", "50.0", "50.0", "75.0", "100.0", "55.0"]
    assert rows["forgotten"] == ["forgotten", "75.0", "50.0", "50.0", "25.0", "50.0"]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_picture_is_written(tmp_path, suffix):
    curves.draw(ACCURACIES, tmp_path / f"curves{suffix}")
    assert (tmp_path / f"curves{suffix}").stat().st_size > 10_000


def test_accuracy_is_the_share_of_names_told_right(server, monkeypatch):
    monkeypatch.setattr(five_pairs, "SENT", 2)
    server.will(say(examples.prediction(2)), say(examples.prediction(1)))
    exam = Pictures((b"a", b"b", b"c"), ("zebra", "okapi", "zebra"))
    with Client(server.url) as client:
        assert five_pairs.accuracy(client, "gate-3", exam) == pytest.approx(2 / 3)
    assert [(seen.query["adapt"], seen.query["top_k"]) for seen in server.seen] == [("false", "1")] * 2


def test_a_recipe_that_the_server_refuses_is_one_line(server, tmp_path, monkeypatch, capsys):
    made_up_cifar(tmp_path)
    server.will(problem(422, "Invalid input", "There is no recipe 'none'."))
    words = ["five_pairs", "--data", tmp_path, "--url", server.url, "--recipe", "none"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    with pytest.raises(SystemExit) as ended:
        five_pairs.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "five_pairs: Invalid input (422): There is no recipe 'none'.\n"
    assert server.calls == ["POST /v1/streams"]


@pytest.mark.parametrize("file", ["curves.txt", "nowhere/curves.png"])
def test_a_picture_that_could_not_be_written_is_refused_at_once(server, tmp_path, file):
    words = ["--data", tmp_path, "--url", server.url, "--plot", tmp_path / file]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 2
    assert "--plot" in result.stderr
    assert server.seen == []
