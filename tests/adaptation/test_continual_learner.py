"""Learning steps: what moves, what grows, what a state remembers."""

import numpy as np
import pytest
import torch
from pairs import COLOURS, METHODS, NORMS, PAIRS, REPLAY, SIDE, coloured, recipe, same, walk
from safetensors.torch import load, save
from small_net import SmallNet, TokenNet, images, randomised
from torch import nn

from normstream.adaptation import HostedModel, HostingError, Preprocessing
from normstream.adaptation.continual import Learner, Learning, damage, learnt_layers
from normstream.adaptation.continual.pixels import normalise
from normstream.adaptation.learnt import Learnt

ADAM = {"augment": True, "descent": {"name": "adam", "lr": 0.001}}
MOMENTUM = {"learns": "affine", "descent": {"momentum": 0.9}, "replay": {"keep": "images", "policy": "ring"}}


@pytest.mark.parametrize(
    ("norm", "method", "changes"),
    [
        *((norm, METHODS[place % 2], {}) for place, norm in enumerate(NORMS)),
        ("adab2n", "derpp", {}),
        ("adab2n", "er_ace", ADAM),
        ("bn", "derpp", ADAM),
        ("adab2n", "derpp", MOMENTUM),
        ("gn", "er_ace", MOMENTUM),
    ],
)
def test_a_reload_continues_exactly(small, norm, method, changes):
    learner = Learner(small, recipe(norm, method, **changes))
    whole, _ = walk(learner, learner.initial(), 7)
    half, _ = walk(learner, learner.initial(), 3)
    reloaded = load(save(half))  # as a stream's state travels
    other = Learner(small, Learning.model_validate_json(learner.recipe.model_dump_json()))
    rest, _ = walk(other, reloaded, 4, first=3)
    assert same(whole, rest) == []
    assert torch.equal(learner.predict(whole, coloured(PAIRS[0])), other.predict(rest, coloured(PAIRS[0])))


def test_a_step_changes_nothing_that_it_is_given(small):
    learner = Learner(small, recipe())
    state, _ = walk(learner, learner.initial(), 5)
    before = {name: value.clone() for name, value in state.items()}
    weights = {name: value.clone() for name, value in small.network.state_dict().items()}
    logits = small.network(images(2)).clone()
    after, _ = walk(learner, state, 2, first=5)
    assert same(state, before) == []
    assert same(dict(small.network.state_dict()), weights) == []
    assert torch.equal(small.network(images(2)), logits)
    assert same(state, after)


@pytest.mark.parametrize("norm", ["adab2n", "bn", None])
def test_a_new_stream_answers_as_the_network(small, norm):
    learner = Learner(small, recipe(norm))
    state = learner.initial(["a", "b", "c", "d", "e"])
    pixels = coloured(list(COLOURS))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (small.preprocessing.mean, small.preprocessing.std))
    expected = small.network((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std)
    torch.testing.assert_close(learner.predict(state, pixels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("learns", "moving"),
    [("head", {"head"}), ("affine", {"head", "affine"}), ("all", {"head", "affine", "other"})],
)
@pytest.mark.parametrize("norm", ["bn", None])
def test_what_learns(small, learns, moving, norm):
    learner = Learner(small, recipe(norm, learns=learns))
    names = ["red", "green", "blue", "grey", "five"]
    state = learner.initial(names)
    after, _ = walk(learner, state, 2)
    norms = {f"network.{layer.path}.{name}" for layer in small.layers for name in ("weight", "bias")}
    learnt = {name for name in same(state, after) if not name.startswith(("replay.", "classes."))}
    learnt = {
        name for name in learnt if not name.endswith((".run_mean", ".run_var")) and name not in ("steps", "batches")
    }
    kinds = {"affine" if name in norms else "head" if name.startswith("head.") else "other" for name in learnt}
    assert kinds == moving
    held = {name for name in state if name.startswith("network.") and not name.endswith((".run_mean", ".run_var"))}
    assert bool(held & norms) == ("affine" in moving)
    assert bool(held - norms) == ("other" in moving)


def test_the_head_grows_and_keeps_names_and_outputs(small):
    learner = Learner(small, recipe(descent={"momentum": 0.9}))
    first, report = walk(learner, learner.initial(), 4)
    assert learner.names(first) == ("red", "green")
    assert report.classes == 2
    second, _, report = learner.learn(first, coloured(["blue", "red"]), ["blue", "red"])
    assert learner.names(second) == ("red", "green", "blue")
    assert report.classes == 3
    assert second["head.weight"].shape == (3, 10)
    assert second["optimizer.head.weight.velocity"].shape == (3, 10)
    assert second["network.body.1.task_weight"].shape == (2,)
    assert learner.predict(second, coloured(["red"])).shape == (1, 3)


def test_a_pretrained_head_goes_on(small):
    learner = Learner(small, recipe(classes_per_task=1))
    names = ["a", "b", "c", "d", "e"]
    state = learner.initial(names)
    torch.testing.assert_close(state["head.weight"], small.classifier.weight)
    state, _, _ = learner.learn(state, coloured(["red", "blue"]), ["red", "blue"])
    assert learner.names(state) == (*names, "red", "blue")
    assert state["network.body.1.task_weight"].shape == (3,)  # what it came with is one task


@pytest.mark.parametrize(
    ("norm", "method"), [*((norm, "er_ace") for norm in NORMS), ("adab2n", "derpp"), ("bn", "derpp")]
)
def test_it_learns_two_pairs_without_forgetting(small, norm, method):
    learner = Learner(small, recipe(norm, method, batch=6, descent={"lr": 0.03}))
    state = learner.initial()
    for pair in range(2):
        for turn in range(40):
            state, _, report = learner.learn(state, coloured(PAIRS[pair], 100 * pair + turn), PAIRS[pair])
            assert report.discarded is None
    labels = list(COLOURS) * 5
    answers = [learner.names(state)[index] for index in learner.predict(state, coloured(labels, 999)).argmax(1)]
    assert np.mean([answer == label for answer, label in zip(answers, labels, strict=True)]) > 0.9


def test_features_are_kept_in_place_of_images(small):
    learner = Learner(small, recipe(None, learns="head", replay={"keep": "features", "capacity": 8, "batch": 4}))
    state, report = walk(learner, learner.initial(), 6)
    assert report.kept == 8
    assert set(state["replay.lengths"].tolist()) == {4 * 10}  # float32 of the head's width
    assert report.replayed == 4


def test_features_replay_is_images_replay_where_the_body_stays(small):
    states = []
    for keep in ("images", "features"):
        learner = Learner(
            small, recipe(None, learns="head", replay={"keep": keep, "capacity": 8, "batch": 4, "encoding": "png"})
        )
        states.append(walk(learner, learner.initial(), 7)[0])
    torch.testing.assert_close(states[0]["head.weight"], states[1]["head.weight"])


def test_nothing_is_kept_unless_the_recipe_asks(small):
    learner = Learner(small, recipe(replay={}))
    state, report = walk(learner, learner.initial(), 6)
    assert report.kept == report.kept_bytes == report.replayed == 0
    assert state["replay.data"].numel() == 0


@pytest.mark.parametrize(("method", "logits"), [("er_ace", 0), ("derpp", 2)])
def test_the_bytes_kept_are_those_of_samples_and_logits(small, method, logits):
    learner = Learner(small, recipe(None, method))
    state, report = walk(learner, learner.initial(), 2)
    assert report.kept == 12
    assert report.kept_bytes == Learnt("", learner.recipe, state).kept_bytes
    assert report.kept_bytes == len(state["replay.data"]) + 12 * logits * 4
    narrow = recipe(None, method, replay=REPLAY | {"max_bytes": report.kept_bytes - 1})
    _, report = walk(Learner(small, narrow), learner.initial(), 2)
    assert report.kept == 11


def test_forward_passes_apart_and_together_differ_in_statistics_alone(small):
    apart, together = (Learner(small, recipe("gn", together=together)) for together in (False, True))
    # Group normalisation looks at no batch, so both must agree.
    one, other = (walk(learner, learner.initial(), 6)[0] for learner in (apart, together))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)
    apart, together = (Learner(small, recipe("bn", together=together)) for together in (False, True))
    one, other = (walk(learner, learner.initial(), 6)[0] for learner in (apart, together))
    assert not torch.allclose(one["head.weight"], other["head.weight"], atol=1e-3)


def test_one_image_at_a_time(small):
    # One of its batch norms sees 1x1 maps: one image shows it one value per channel.
    for norm in NORMS:
        learner = Learner(small, recipe(norm, "derpp"))
        state = learner.initial()
        for label in ("red", "green", "blue", "red"):
            state, logits, report = learner.learn(state, coloured([label]), [label])
            assert report.discarded is None
            assert logits.isfinite().all()


def test_a_step_that_is_not_finite_is_discarded(small):
    learner = Learner(small, recipe(descent={"lr": 10}))
    state, _ = walk(learner, learner.initial(), 2)
    broken = state | {"head.weight": state["head.weight"] * 1e38}
    after, _, report = learner.learn(broken, coloured(PAIRS[0]), PAIRS[0])
    assert report.discarded
    assert after is broken


def test_trained_statistics_are_not_replaced_by_the_first_batch(small):
    learner = Learner(small, recipe("adab2n", batch=6))
    state, name = learner.initial(), "network.body.1.run_mean"
    long, _ = walk(learner, state, 1)
    short, _ = walk(learner, state | {"batches": torch.tensor(0)}, 1)
    # The rate is 0.04 after a long past, and 0.4 at the very first batch.
    ratio = (short[name] - state[name]) / (long[name] - state[name])
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.1**0.4 / (1 - 0.9**0.4)), rtol=1e-3, atol=1e-3)


def test_untrained_statistics_count_from_the_first_batch():
    torch.manual_seed(0)
    hosted = HostedModel(SmallNet(), "untrained", Preprocessing(input_size=(3, SIDE, SIDE)))
    assert Learner(hosted, recipe("adab2n")).initial()["batches"] == 0


def test_a_network_without_batch_norms(tokens):
    learner = Learner(tokens, recipe("adab2n", learns="affine"))
    state, report = walk(learner, learner.initial(), 6)
    assert report.discarded is None
    assert "network.third.weight" in state


class Scaled(nn.Module):
    """Has a weight without axes, below 0."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.tensor(-0.5)), nn.Linear(3 * SIDE * SIDE, 2)

    def forward(self, x):
        return self.head(x.flatten(1) * self.scale)


@pytest.mark.parametrize("descent", [{}, {"momentum": 0.9}, {"name": "adam"}])
def test_a_weight_without_axes_is_learnt(descent):
    hosted = HostedModel(Scaled(), "scaled", Preprocessing(input_size=(3, SIDE, SIDE)))
    learner = Learner(hosted, recipe(None, descent=descent))
    state, report = walk(learner, learner.initial(), 5)
    assert report.discarded is None
    assert state["network.scale"] != -0.5
    assert damage(learner, state) is None


@pytest.mark.parametrize("descent", [{}, {"name": "adam"}])
def test_a_smaller_lesson_takes_its_share_of_the_step(small, descent):
    whole, half = (Learner(small, recipe(None, batch=batch, descent=descent)) for batch in (2, 4))
    start, _ = walk(whole, whole.initial(), 2)
    far, near = (learner.learn(start, coloured(["red", "green"]), ["red", "green"])[0] for learner in (whole, half))
    assert not torch.equal(far["head.weight"], start["head.weight"])
    for name in whole.parameter_names:
        torch.testing.assert_close(2 * (near[name] - start[name]), far[name] - start[name], msg=name)


def test_a_smaller_lesson_s_share_is_its_velocity_s_too(small):
    descent = {"momentum": 0.9}
    whole, half = (Learner(small, recipe(None, batch=batch, descent=descent)) for batch in (2, 4))
    start, _ = walk(whole, whole.initial(), 2)
    far, near = (learner.learn(start, coloured(["red", "green"]), ["red", "green"])[0] for learner in (whole, half))
    for name in whole.parameter_names:
        old, new, halved = (state[f"optimizer.{name}.velocity"] for state in (start, far, near))
        torch.testing.assert_close(2 * (halved - 0.9 * old), new - 0.9 * old, msg=name)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("norm", ["adab2n", "bn", "cn"])
def test_labels_move_the_statistics_as_far_one_by_one_as_together(small, norm, trained):
    learner = Learner(small, recipe(norm, learns="head", replay={}))
    start = learner.initial(["red", "b", "c", "d", "e"])
    if not trained:
        start |= {"batches": torch.zeros_like(start["batches"])}
    pixels = coloured(["red"])
    together, *_ = learner.learn(start, pixels.repeat(10, 0), ["red"] * 10)
    singly = start
    for _ in range(10):
        singly, *_ = learner.learn(singly, pixels, ["red"])
    torch.testing.assert_close(singly["batches"], together["batches"])
    for path in ("body.1", "body.4"):  # The others see one value per channel of one image, which moves nothing.
        old, one, ten = (
            torch.cat([state[f"network.{path}.{name}"] for name in ("run_mean", "run_var")])
            for state in (start, singly, together)
        )
        assert not torch.equal(ten, old)
        torch.testing.assert_close(one, ten, rtol=1e-2, atol=1e-3, msg=path)


@pytest.mark.parametrize("norm", ["adab2n", "bn", "cn"])
def test_a_state_whose_batches_are_whole_goes_on(small, norm):
    """As all were before lessons of part of a batch counted as that part."""
    learner = Learner(small, recipe(norm, batch=6))
    state, _ = walk(learner, learner.initial(), 2)
    whole = state | {"batches": state["batches"].long()}
    assert damage(learner, load(save(whole))) is None
    assert same(walk(learner, whole, 2, first=2)[0], walk(learner, state, 2, first=2)[0]) == []
    assert "batches is -1" in damage(learner, state | {"batches": torch.tensor(-1.0, dtype=torch.float64)})


def test_a_head_that_cannot_grow_is_refused():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    hosted = HostedModel(randomised(network), "conv", Preprocessing(input_size=(3, SIDE, SIDE)))
    with pytest.raises(HostingError, match=r"cannot grow.*linear"):
        Learner(hosted, recipe())


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (coloured(["red"]), ["red", "blue"], "2 labels are given for 1 examples"),
        (coloured(["red"]).astype(np.float32), ["red"], "uint8"),
        (np.zeros((1, 8, 8, 3), np.uint8), ["red"], r"\(1, 8, 8, 3\)"),
        (np.zeros((0, SIDE, SIDE, 3), np.uint8), [], "at least 1"),
        (coloured(["red", "blue", "grey"]), ["red", "blue", "grey"], "max_new_classes"),
    ],
)
def test_bad_samples_are_refused(small, pixels, labels, message):
    learner = Learner(small, recipe(max_new_classes=2))
    with pytest.raises(ValueError, match=message):
        learner.learn(learner.initial(), pixels, labels)


def test_prediction_before_any_class_is_refused(small):
    learner = Learner(small, recipe())
    with pytest.raises(ValueError, match="no class"):
        learner.predict(learner.initial(), coloured(["red"]))


def test_names_must_be_as_many_as_the_heads_outputs(small):
    with pytest.raises(ValueError, match="5 classes"):
        Learner(small, recipe()).initial(["a", "b"])
    with pytest.raises(ValueError, match="several 'b'"):
        Learner(small, recipe()).initial(["a", "b", "c", "d", "b"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"together": False}, "together: true"),
        ({"replay": {"keep": "features"}}, "learns: head and norm: null"),
        ({"learns": "none"}, "learns"),
        ({"method": {"name": "icarl"}}, "method"),
        ({"replay": {"keep": "images", "max_bytes": -1}}, "max_bytes"),
        ({"classes_per_task": 0}, "classes_per_task"),
    ],
)
def test_bad_recipes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        recipe(**changes)


def test_served_layers_of_a_token_network_are_left_alone():
    torch.manual_seed(0)
    hosted = HostedModel(TokenNet(), "tokens", Preprocessing(input_size=(3, SIDE, SIDE)))
    learner = Learner(hosted, recipe(None))
    before = hosted.network(images(2))
    walk(learner, learner.initial(), 2)
    assert torch.equal(hosted.network(images(2)), before)


@pytest.mark.parametrize("norm", ["adab2n", "bn", None])
def test_what_was_learnt_fits_the_hosted_network(norm):
    torch.manual_seed(0)
    hosted = HostedModel(randomised(SmallNet()), "small", Preprocessing(input_size=(3, SIDE, SIDE)))
    learner = Learner(hosted, recipe(norm, learns="affine"))
    state, _ = walk(learner, learner.initial(["a", "b", "c", "d", "e"]), 5)
    layers = learnt_layers(hosted, learner.recipe, state)
    modules = dict(SmallNet().named_modules())
    network = modules[""]
    network.load_state_dict(hosted.network.state_dict())
    for layer in layers:
        modules[layer.path].weight.data, modules[layer.path].bias.data = layer.weight, layer.bias
        modules[layer.path].running_mean, modules[layer.path].running_var = layer.source
    network.head[1].weight.data, network.head[1].bias.data = state["head.weight"], state["head.bias"]
    pixels = coloured(["red", "blue", "grey"])
    inputs = normalise(pixels, hosted.preprocessing)
    torch.testing.assert_close(learner.predict(state, pixels), network.eval()(inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("norm", "learns"), [("adab2n", "all"), ("gn", "affine")])
def test_a_network_of_its_own_does_not_fit(small, norm, learns):
    learner = Learner(small, recipe(norm, learns=learns))
    with pytest.raises(HostingError, match="network of its own"):
        learnt_layers(small, learner.recipe, learner.initial())
