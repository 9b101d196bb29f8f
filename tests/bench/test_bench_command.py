"""The command from end to end: measures, goes on, refuses."""

import json
import re
from pathlib import Path

import pytest
import typer
from made_up import cifar, photographs, run
from safetensors.torch import save_file

from normstream.adaptation.bench import command, datasets
from normstream.adaptation.bench.run import Contender


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return cifar(tmp_path_factory.mktemp("data") / "cifar")


def options(data, out, *more, recipes=("source", "bn1")):
    named = [word for recipe in recipes for word in ("--recipe", recipe)]
    return "--data", data, "--out", out, "--corruptions", "fog,contrast", "--batch", 8, *named, *more


def results(out):
    return json.loads((out / "results.json").read_text())


def test_photographs_from_end_to_end(tmp_path):
    photos, out = photographs(tmp_path / "photos"), tmp_path / "out"
    recipes = ["source", '{"norm": {"name": "ema", "alpha": 0.3}}']
    done = run(*options(photos, out, "--severity", 3, recipes=recipes))
    assert done.exit_code == 0, done.output
    found = results(out)
    assert found["settings"]["model"] == "tf_efficientnet_lite0"
    assert found["settings"]["fingerprint"].startswith("sha256:")
    assert {"seed", "order", "batch", "normstream", "torch"} <= found["settings"].keys()
    assert [recipe["name"] for recipe in found["recipes"]] == ["source", "ema(alpha=0.3)"]
    for recipe in found["recipes"]:
        assert [score["corruption"] for score in recipe["scores"]] == ["fog", "contrast"]
        for score in recipe["scores"]:
            assert score["images"] == 6
            assert score["images_per_s"] > 0
            assert score["error_low"] <= score["error_percent"] <= score["error_high"]
        assert recipe["mean"]["errors"] == sum(score["errors"] for score in recipe["scores"])
    states = [recipe["mean"]["state_bytes"] for recipe in found["recipes"]]
    assert states[0] == 0 < states[1]
    assert (out / "results.png").stat().st_size > 10_000
    report = (out / "results.md").read_text()
    assert report in done.stdout
    assert all(word in report for word in ("| fog |", "| **mean** |", "ema(alpha=0.3)", "lite0"))


@pytest.mark.parametrize("order", ["shuffled", "class", "dirichlet"])
def test_a_run_can_be_repeated(data, tmp_path, order):
    cache = "--cache", tmp_path / "cache"
    for out in (tmp_path / "a", tmp_path / "b"):
        assert run(*options(data, out, "--order", order, *cache)).exit_code == 0
    first, second = (
        [[score["errors"] for score in recipe["scores"]] for recipe in results(out)["recipes"]]
        for out in (tmp_path / "a", tmp_path / "b")
    )
    assert first == second
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_stream_is_reset_when_asked(data, tmp_path):
    """A second corruption after a reset is scored as if it were the first."""
    shown = {
        (reset, corruptions): run_errors(data, tmp_path / f"{reset}-{corruptions}", reset, corruptions)
        for reset in ("continual", "each_shift")
        for corruptions in ("fog,contrast", "contrast")
    }
    assert shown["each_shift", "fog,contrast"]["contrast"] == shown["each_shift", "contrast"]["contrast"]
    assert shown["continual", "fog,contrast"]["contrast"] != shown["continual", "contrast"]["contrast"]


def run_errors(data, out, reset, corruptions):
    """The calibration errors by corruption: an untrained network's confidence shows any change of its statistics."""
    recipe = '{"norm": {"name": "ema", "alpha": 1, "momentum": 0.1}}'
    done = run(*options(data, out, "--reset", reset, "--corruptions", corruptions, recipes=[recipe]))
    assert done.exit_code == 0, done.output
    return {score["corruption"]: score["ece"] for score in results(out)["recipes"][0]["scores"]}


@pytest.fixture
def followed(monkeypatch):
    """Names of the recipes that are measured; the one named `fails_at` is cut short in its second corruption."""
    seen, real = [], command.follow

    def follow(hosted, contender, stream, advance):
        seen.append(contender.name)
        for number, score in enumerate(real(hosted, contender, stream, advance)):
            if number and contender.name == follow.fails_at:
                raise KeyboardInterrupt
            yield score

    follow.fails_at = None
    monkeypatch.setattr(command, "follow", follow)
    return seen, follow


def test_a_run_that_was_cut_short_goes_on(data, tmp_path, followed):
    seen, follow = followed
    follow.fails_at = "bn1"
    recipes = ("source", "bn1", "alpha_bn")
    cut = run(*options(data, tmp_path / "out", recipes=recipes))
    assert cut.exit_code != 0
    assert seen == ["source", "bn1"]
    kept = {path.name.split("-")[1]: json.loads(path.read_text()) for path in (tmp_path / "out").glob("recipe-*.json")}
    assert {name: record["finished"] for name, record in kept.items()} == {"source": True, "bn1": False}
    assert len(kept["bn1"]["scores"]) == 1

    follow.fails_at = None
    seen.clear()
    assert run(*options(data, tmp_path / "out", recipes=recipes)).exit_code == 0
    assert seen == ["bn1", "alpha_bn"]
    names = [recipe["name"] for recipe in results(tmp_path / "out")["recipes"]]
    assert names == list(recipes)
    assert results(tmp_path / "out")["recipes"][0]["scores"] == kept["source"]["scores"]

    seen.clear()
    again = run(*options(data, tmp_path / "out", recipes=recipes))
    assert again.exit_code == 0
    assert seen == []
    assert "| **mean** |" in again.stdout


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (("--batch", 9), "batch was 8 and is 9"),
        (("--seed", 1), "seed was 0 and is 1"),
        (("--severity", 4), "severity was 5 and is 4"),
        (("--order", "class"), "order was 'shuffled' and is 'class'"),
        (("--images", 20), "images was 30 and is 20"),
        (("--corruptions", "fog"), "corruptions was"),
    ],
)
def test_other_settings_are_not_mixed_in(data, tmp_path_factory, changed, named):
    out = tmp_path_factory.getbasetemp() / "mixed"
    if not out.exists():
        assert run(*options(data, out)).exit_code == 0
    before = {path: path.read_bytes() for path in out.glob("*.json")}
    refuse(options(data, out, *changed), named)
    assert before == {path: path.read_bytes() for path in out.glob("*.json")}


def test_a_delta_that_is_not_used_is_no_setting(data, tmp_path):
    assert run(*options(data, tmp_path / "out", recipes=["source"])).exit_code == 0
    assert run(*options(data, tmp_path / "out", "--dirichlet", 0.5, recipes=["source"])).exit_code == 0


def refuse(arguments, *words):
    """One line on stderr, exit code 2."""
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("normstream bench: ")
    for word in words:
        assert word in done.stderr


def test_bad_recipes(data, tmp_path):
    refuse(options(data, tmp_path / "out", recipes=["bn2"]), "--recipe: unknown recipe 'bn2'", "the presets are")
    refuse(options(data, tmp_path / "out", recipes=['{"norm": {"name": "alpha_bn", "alpha": 7}}']), "alpha", "got 7")
    assert not (tmp_path / "out").exists()


CALIBRATED = ["shift", '{"norm": {"name": "alpha_bn"}, "update": {"name": "eata"}}']


def test_a_recipe_that_needs_a_calibration(data, tmp_path):
    out, more = tmp_path / "out", cifar(tmp_path / "more", 80)
    refuse(options(data, out, recipes=["source", "eata"]), "--recipe: 'eata'", "--calibrate PATH")
    assert not out.exists()
    done = run(*options(data, out, "--calibrate", more, recipes=["source", *CALIBRATED]))
    assert done.exit_code == 0, done.output
    found = results(out)
    assert [recipe["name"] for recipe in found["recipes"]] == ["source", "shift", "alpha_bn x eata"]
    assert found["settings"]["calibration"] == f"sha256:{digest(more)}"
    source, shift, _ = ([score["ece"] for score in recipe["scores"]] for recipe in found["recipes"])
    assert source != shift
    refuse(options(data, out, "--calibrate", data), "calibration was 'sha256:", "give another folder")
    refuse(options(data, out), "calibration was 'sha256:", "is None")


def digest(data):
    source = datasets.find(data)
    return source.load(source.host(None), None).digest


def test_layer_norms_aligned_to_their_calibration(tmp_path):
    photos, out = photographs(tmp_path / "photos"), tmp_path / "out"
    model = "--model", f"architecture=test_vit,checkpoint={untrained('test_vit', tmp_path)},classes=6"
    done = run(*options(photos, out, *model, "--calibrate", photos, recipes=["source", "ln_align"]))
    assert done.exit_code == 0, done.output
    source, aligned = ([score["ece"] for score in recipe["scores"]] for recipe in results(out)["recipes"])
    assert source != aligned


def test_bad_images_to_calibrate_on(data, tmp_path):
    refuse(options(data, tmp_path / "out", "--calibrate", tmp_path / "nowhere"), "--calibrate: there is no")
    more = cifar(tmp_path / "more")
    (more / "test.npz").write_bytes(b"no npz")
    refuse(options(data, tmp_path / "out", "--calibrate", more), "--calibrate: ", "is no npz")
    assert not (tmp_path / "out").exists()


def test_more_images_than_there_are(data, tmp_path):
    refuse(options(data, tmp_path / "out", "--images", 31), "--images: 31 are asked for, and there are 30")


def test_a_recipe_is_measured_once(data, tmp_path):
    recipes = ["source", "alpha_bn", '{"norm": {"name": "alpha_bn", "alpha": 0.1}}']
    assert run(*options(data, tmp_path / "out", recipes=recipes)).exit_code == 0
    assert [recipe["name"] for recipe in results(tmp_path / "out")["recipes"]] == ["source", "alpha_bn"]


@pytest.mark.parametrize("names", ["fog,hail", "fog,", "fog,fog", ""])
def test_bad_corruptions(data, tmp_path, names):
    refuse(options(data, tmp_path / "out", "--corruptions", names), "--corruptions: ")


def test_an_unknown_corruption_is_answered_with_the_list(data, tmp_path):
    refuse(options(data, tmp_path / "out", "--corruptions", "hail"), "'hail'", "gaussian_noise", "jpeg_compression")


def test_bad_data_and_models(data, tmp_path):
    (tmp_path / "empty").mkdir()
    refuse(options(tmp_path / "empty", tmp_path / "out"), "--data: no images in")
    refuse(options(tmp_path / "nowhere", tmp_path / "out"), "--data: there is no")
    refuse(options(data, tmp_path / "out", "--model", tmp_path / "no.safetensors"), "holds no weights")
    photos = photographs(tmp_path / "photos", 1)
    refuse(options(photos, tmp_path / "out", "--model", "no_such_net"), "--model: ", "no_such_net")
    refuse(options(photos, tmp_path / "out", "--model", "architecture=resnet18,classes=x"), "--model: classes")


def test_a_recipe_that_the_model_cannot_follow(tmp_path):
    photos = photographs(tmp_path / "photos", 1)
    spec = f"architecture=vit_tiny_patch16_224,checkpoint={untrained('vit_tiny_patch16_224', tmp_path)},classes=6"
    refuse(options(photos, tmp_path / "out", "--model", spec), "--recipe: ", "bn1")


def untrained(architecture, folder):
    import timm

    save_file(timm.create_model(architecture, num_classes=6).state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"


@pytest.mark.parametrize(
    "wrong",
    [
        ("--severity", 6),
        ("--severity", 0),
        ("--batch", 0),
        ("--order", "random"),
        ("--dirichlet", 0),
        ("--dirichlet", "nan"),
    ],
)
def test_values_out_of_range(data, tmp_path, wrong):
    done = run(*options(data, tmp_path / "out", *wrong))
    assert done.exit_code == 2
    assert wrong[0] in done.stderr


def test_an_out_that_is_no_folder(data, tmp_path):
    (tmp_path / "out").write_text("a file")
    refuse(options(data, tmp_path / "out"), "is no folder")


@pytest.mark.parametrize("content", ["", "[]", '{"finished": true, "scores": [{}]}'])
def test_results_that_cannot_be_read(data, tmp_path, content):
    assert run(*options(data, tmp_path / "out", recipes=["source"])).exit_code == 0
    [path] = (tmp_path / "out").glob("recipe-*.json")
    path.write_text(content)
    refuse(options(data, tmp_path / "out", recipes=["source"]), "cannot read", path.name)


def test_names_of_recipes():
    assert Contender.parse("alpha_bn").name == "alpha_bn"
    assert Contender.parse('{"norm": {"name": "alpha_bn", "alpha": 0.1}}').name == "alpha_bn"
    assert Contender.parse('{"norm": {"name": "alpha_bn", "alpha": 0.7}}').name == "alpha_bn(alpha=0.7)"
    assert Contender.parse('{"output": {"name": "lame", "k": 3}}').name == "lame(k=3)"
    assert (
        Contender.parse('{"norm": {"name": "ema"}, "update": {"name": "tent", "lr": 0.1}}').name == "ema x tent(lr=0.1)"
    )


def test_alarms_of_an_update_are_counted(data, tmp_path):
    """No step passes this guard: its floors are those of answers that say nothing."""
    guard = {"diversity_floor": 0.9999, "entropy_floor": 0.9999, "momentum": 1, "patience": 1000}
    recipe = json.dumps({"norm": {"name": "bn1"}, "update": {"name": "tent", "guard": guard}})
    assert run(*options(data, tmp_path / "out", recipes=[recipe, "source"])).exit_code == 0
    alarms = [[score["alarms"] for score in recipe["scores"]] for recipe in results(tmp_path / "out")["recipes"]]
    assert alarms == [[4, 4], [0, 0]]  # 30 images in batches of 8


def test_every_option_is_documented():
    app = typer.Typer(add_completion=False)
    app.command("bench")(command.bench)
    options = {name for parameter in typer.main.get_command(app).params for name in parameter.opts}
    documented = re.findall(r"^\| `(--[a-z]+)", (Path(__file__).parents[2] / "docs/bench.md").read_text(), re.M)
    assert sorted(documented) == sorted(options)
