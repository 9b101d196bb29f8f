"""The benchmark of continual learning, on a few images of a few classes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up import arrays
from safetensors.torch import load_file

from normstream.adaptation.bench import continual
from normstream.adaptation.bench.continual import Entrant, Setting, measure, split
from normstream.adaptation.bench.continual_report import average_accuracy, forgetting, gather, markdown
from normstream.adaptation.bench.datasets import CifarFile, Dataset
from normstream.adaptation.bench.errors import BenchError
from normstream.adaptation.continual import Learner

TINY = Setting(batch=6)
ENTRANTS = (Entrant("er_ace", "bn", together=False), Entrant("derpp", "adab2n"))


def folder_of(path, classes=4, each=6):
    path.mkdir()
    for part, count in (("train", each), ("test", 2)):
        content = arrays(classes * count)
        content["labels"] = np.arange(classes * count) % classes
        np.savez(path / f"{part}.npz", **content)
    return path


def test_from_images_to_tables_and_on_after_an_interruption(tmp_path):
    data, out = folder_of(tmp_path / "data"), tmp_path / "out"
    seen = []

    class Cut(Exception):
        pass

    def cut(run):
        seen.append(run)
        if len(seen) == 3:  # in the second run, after the first of its two tasks
            raise Cut

    with pytest.raises(Cut):
        measure(data, out, TINY, entrants=ENTRANTS, buffers=[8], seeds=[0], advance=cut)
    [kept] = out.glob("*.safetensors")
    assert "derpp-adab2n" in kept.name
    assert load_file(kept)["head.weight"].shape == (2, 256)
    for number, harm in enumerate((Path.unlink, lambda file: file.write_bytes(b"damaged"))):
        harmed = tmp_path / f"harmed-{number}"
        shutil.copytree(out, harmed)
        harm(harmed / kept.name)
        with pytest.raises(BenchError, match="cannot read"):
            measure(data, harmed, TINY, entrants=ENTRANTS[1:], buffers=[8], seeds=[0])
    # What it gives after the interruption is what it gives without one.
    resumed = measure(data, out, TINY, entrants=ENTRANTS, buffers=[8], seeds=[0])
    whole = measure(data, tmp_path / "whole", TINY, entrants=ENTRANTS, buffers=[8], seeds=[0])
    assert [run.accuracies for run in resumed] == [run.accuracies for run in whole]
    assert [len(run.accuracies) for run in whole] == [2, 2]
    assert not list(out.glob("*.safetensors"))
    results = json.loads((out / "results.json").read_text())
    assert results["settings"]["images"] == 24
    assert {run["entrant"]["norm"] for run in results["runs"]} == {"bn", "adab2n"}
    assert "er_ace bn apart" in (out / "results.md").read_text()
    assert (out / "results.png").stat().st_size > 1000


def test_offline_every_image_comes_once_in_each_epoch_in_an_order_of_its_own(tmp_path):
    data = CifarFile(folder_of(tmp_path / "data", classes=2) / "train.npz").load(continual.host(TINY, 0), None)
    learner = Learner(continual.host(TINY, 0), ENTRANTS[0].recipe(8, 6, 0.03, 0))
    seen = []

    class Watched:
        def learn(self, state, pixels, names):
            seen.extend(image.tobytes() for image in pixels)
            return learner.learn(state, pixels, names)

    state, discarded = continual.learn(Watched(), learner.initial(), data, replace(TINY, epochs=2), (0, 0))
    first, second = seen[:12], seen[12:]
    assert sorted(first) == sorted(second) == sorted(image.tobytes() for image in data.pixels)
    assert first != second
    assert (int(state["steps"]), discarded) == (4, 0)


def test_a_folder_of_other_settings_is_refused(tmp_path):
    data, out = folder_of(tmp_path / "data"), tmp_path / "out"
    out.mkdir()
    (out / "settings.json").write_text('{"epochs": 2}')
    with pytest.raises(BenchError, match=r"epochs was 2 and is 1"):
        measure(data, out, TINY, entrants=ENTRANTS, buffers=[8], seeds=[0])


def test_a_record_that_cannot_be_read_is_refused(tmp_path):
    data, out = folder_of(tmp_path / "data"), tmp_path / "out"
    out.mkdir()
    (out / "er_ace-bn-apart-8-seed0.json").write_text("{}")
    with pytest.raises(BenchError, match="cannot read"):
        measure(data, out, TINY, entrants=ENTRANTS[:1], buffers=[8], seeds=[0])


def test_missing_data_is_named(tmp_path):
    with pytest.raises(BenchError, match=r"train\.npz"):
        measure(tmp_path, tmp_path / "out", TINY)


def test_too_few_classes_are_refused(tmp_path):
    with pytest.raises(BenchError, match="too few for two tasks"):
        measure(folder_of(tmp_path / "data", classes=3), tmp_path / "out", TINY)


def test_tasks_are_pairs_of_classes():
    labels = np.array([3, 0, 1, 2, 2, 5])
    tasks = split(Dataset(np.arange(6, dtype=np.uint8)[:, None, None, None], labels, np.arange(6)))
    assert [task.labels.tolist() for task in tasks] == [[0, 1], [3, 2, 2], [5]]
    assert [task.numbers.tolist() for task in tasks] == [[1, 2], [0, 3, 4], [5]]


def test_baselines_come_apart_and_together():
    names = {entrant.name for entrant in continual.ENTRANTS}
    assert {"er_ace bn", "er_ace bn apart", "derpp bn", "derpp bn apart", "er_ace adab2n", "derpp adab2n"} <= names
    for entrant in continual.ENTRANTS:
        assert entrant.recipe(2000, 10, 0.03, 0).replay.capacity == 2000


def test_weights_of_derpp_follow_the_buffer():
    method = Entrant("derpp", "bn").recipe(2000, 10, 0.03, 0).method
    assert (method.alpha, method.beta) == (0.1, 1.0)


def test_seeds_give_different_networks_and_leave_torchs_own_randomness_alone():
    import torch

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (continual.host(TINY, seed).fingerprint for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.rand(1), expected)


def test_accuracy_and_forgetting():
    accuracies = [[0.9], [0.5, 0.8], [0.6, 0.2, 1.0]]
    assert average_accuracy(accuracies) == pytest.approx(0.6)
    assert forgetting(accuracies) == pytest.approx((0.3 + 0.6) / 2)
    assert forgetting([[0.9]]) == 0


def test_the_table_has_mean_and_deviation():
    runs = [
        ("er_ace bn", 500, [[0.5], [0.4, 0.6]]),
        ("er_ace bn", 500, [[0.5], [0.2, 0.6]]),
        ("er_ace gn", 2000, [[1], [1, 1]]),
    ]
    text = markdown({}, gather(runs))
    assert "| er_ace bn | 45.0 ± 7.1 | 20.0 ± 14.1 | - | - |" in text
    assert "| er_ace gn | - | - | 100.0 | 0.0 |" in text
