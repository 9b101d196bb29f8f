"""Streams that learn from uploaded samples: what holds for every lesson."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_net import SmallNet, host_small, host_tokens, images, randomised
from teachers import NOW, STUDENTS, TEACHERS, compressed, every_recipe, host_teacher, of, same, samples, taught

from normstream.adaptation import (
    PRESETS,
    ForeignStateError,
    HostingError,
    Recipe,
    Request,
    Sample,
    StateError,
    StreamState,
    admit,
    decode,
    edge_parameters,
    encode,
    initial_state,
    step,
    teach,
)
from normstream.adaptation.recipe import NORM_MEMBERS, TAUGHT_MEMBERS
from normstream.adaptation.teaching import diversity


def test_every_taught_member_is_tried_here():
    assert sorted(TAUGHT_MEMBERS) == ["cema"]


@every_recipe
def test_a_lesson_changes_nothing_it_was_given(student, teacher, recipe):
    state, _ = taught(student, teacher, recipe, [4])
    before = {name: value.clone() for name, value in state.tensors.items()}
    weights = [
        {name: value.clone() for name, value in each.network.state_dict().items()} for each in (student, teacher)
    ]
    outcome = teach(student, teacher, state, samples(3, first=20), NOW)
    assert all(torch.equal(state.tensors[name], value) for name, value in before.items())
    for each, own in zip((student, teacher), weights, strict=True):
        assert all(torch.equal(value, own[name]) for name, value in each.network.state_dict().items())
    assert not torch.equal(outcome.state.tensors["update.affine"], before["update.affine"])
    assert not torch.equal(outcome.state.tensors["update.teacher.affine"], before["update.teacher.affine"])
    assert outcome.state.step == state.step + 1 == 2


@every_recipe
def test_a_state_keeps_its_structure_and_holds_nothing_else(student, teacher, recipe):
    first = initial_state(student, recipe, teacher)
    last, _ = taught(student, teacher, recipe, [1, 4])
    assert {name: (value.shape, value.dtype) for name, value in first.tensors.items()} == {
        name: (value.shape, value.dtype) for name, value in last.tensors.items()
    }
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in last.tensors.values())
    assert not any(value.requires_grad for value in last.tensors.values())


@every_recipe
def test_the_same_lessons_leave_the_same_state(student, teacher, recipe):
    (one, first), (other, second) = (taught(student, teacher, recipe, [4, 2, 4]) for _ in range(2))
    assert same(one, other)
    assert first == second


@every_recipe
def test_a_lesson_after_encode_and_decode_equals_one_without(student, teacher, recipe):
    state, _ = taught(student, teacher, recipe, [4, 3])
    again = admit(decode(encode(state)), student, recipe, teacher)
    one, other = (teach(student, teacher, each, samples(4, first=40), NOW + 9) for each in (state, again))
    assert same(one.state, other.state)
    assert one.report == other.report
    assert one.report.replayed == (0 if recipe.update.replay == 0 else 6)


@every_recipe
def test_a_new_stream_is_the_source_and_forgets_all_others(student, teacher, recipe):
    before = initial_state(student, recipe, teacher)
    taught(student, teacher, recipe, [4, 4])
    assert same(before, initial_state(student, recipe, teacher))
    (new,) = step(student, [Request(before, images(3), adapt=False)])
    (source,) = step(student, [Request(initial_state(student, PRESETS["source"]), images(3))])
    close = torch.testing.assert_close
    close(new.logits, source.logits, rtol=1e-4, atol=1e-4)


@every_recipe
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_batch_of_any_size_is_learnt_from(student, teacher, recipe, count):
    state, reports = taught(student, teacher, recipe, [count] * 3)
    assert all(value.isfinite().all() for value in state.tensors.values())
    assert [report.used for report in reports] == [count] * 3
    wanted = math.ceil(recipe.update.replay * count / 4)
    assert [report.replayed for report in reports] == [min(wanted, seen) for seen in (0, count, 2 * count)]
    assert not any(report.discarded for report in reports)
    assert reports[-1].replay_images == min(3 * count, 8)


@every_recipe
@pytest.mark.parametrize("pixels", [np.zeros((16, 16), np.uint8), np.full((16, 16), 255, np.uint8)])
def test_grey_images_do_no_harm(student, teacher, recipe, pixels):
    state = initial_state(student, recipe, teacher)
    for _ in range(3):
        state = teach(
            student, teacher, state, [Sample("grey", compressed(Image.fromarray(pixels)), NOW)] * 4, NOW
        ).state
    assert all(value.isfinite().all() for value in state.tensors.values())


@every_recipe
def test_predictions_are_those_of_the_edge(student, teacher, recipe):
    """The state answers, one image or many alike, as a copy of the network with the edge's parameters does."""
    state, _ = taught(student, teacher, recipe, [4, 4, 4])
    batch = images(3, seed=7)
    (result,) = step(student, [Request(state, batch, adapt=False)])
    assert result.state is state
    assert result.report is None
    alone = torch.cat([step(student, [Request(state, image, adapt=False)])[0].logits for image in batch.split(1)])
    torch.testing.assert_close(alone, result.logits, rtol=1e-4, atol=1e-4)
    edge = edge_copy(student, edge_parameters(student, state))
    with torch.inference_mode():
        torch.testing.assert_close(edge(batch), result.logits, rtol=1e-4, atol=1e-4)


def edge_copy(hosted, parameters):
    """The plain network with the parameters put into it, as an edge has it."""
    network = randomised(SmallNet()) if hosted.batch_norms else host_tokens().network
    network.load_state_dict(hosted.network.state_dict())
    modules = dict(network.named_modules())
    for name, layers in (
        ("weight", hosted.layers),
        ("bias", hosted.layers),
        ("mean", hosted.batch_norms),
        ("var", hosted.batch_norms),
    ):
        if not layers:
            assert name not in parameters
            continue
        assert parameters[name].shape == (sum(layers.channels),)
        assert parameters[name].dtype == torch.float32
        for layer, values in zip(layers, parameters[name].split(layers.channels), strict=True):
            module = modules[layer.path]
            target = {"mean": "running_mean", "var": "running_var"}.get(name, name)
            getattr(module, target).data = values.clone()
    return network.eval()


@pytest.mark.parametrize("name", sorted(NORM_MEMBERS))
def test_every_norm_member_has_statistics_that_stand(name):
    """At the start they are the source's; those that remember say what they remember."""
    hosted = STUDENTS["tokens" if NORM_MEMBERS[name].batch_agnostic else "small"]
    recipe = PRESETS[name]
    state = initial_state(hosted, recipe)
    parameters = edge_parameters(hosted, state)
    (source,) = step(hosted, [Request(initial_state(hosted, PRESETS["source"]), images(2))])
    with torch.inference_mode():
        torch.testing.assert_close(edge_copy(hosted, parameters)(images(2)), source.logits, rtol=1e-3, atol=1e-3)
    (moved,) = step(hosted, [Request(state, 3 + images(8))])
    after = edge_parameters(hosted, moved.state)
    remembers = bool(state.tensors)
    assert remembers is (name in {"ema", "iabn", "ln_align", "tbr", "unmix_tns"})
    assert any(not torch.equal(after[key], parameters[key]) for key in after) is remembers
    assert all(value.isfinite().all() for value in after.values())


@pytest.mark.parametrize("update", ["tent", "cotta"])
def test_a_stream_that_learns_by_itself_can_feed_an_edge(small, update):
    recipe = Recipe.parse({"norm": {"name": "ema"}, "update": {"name": update, "lr": 0.1}})
    (result,) = step(small, [Request(initial_state(small, recipe), images(4))])
    parameters = edge_parameters(small, result.state)
    name = "update.affine" if update == "tent" else "update.memory.teacher"
    assert torch.equal(torch.stack([parameters["weight"], parameters["bias"]]), result.state.tensors[name])
    assert not torch.equal(parameters["mean"], small.batch_norms.source.mean)


def test_a_taught_stream_does_not_learn_from_predictions(small):
    state = initial_state(small, of(), TEACHERS["small"])
    with pytest.raises(ValueError, match=r"'cema' learns from uploaded samples.*adapt=False"):
        step(small, [Request(state, images(2))])


def test_taught_streams_share_a_batch_with_all_others(small):
    state, _ = taught(small, TEACHERS["small"], of(), [4, 4])
    other, _ = taught(small, TEACHERS["small"], of(), [2])
    requests = [
        Request(state, images(2), adapt=False),
        Request(initial_state(small, PRESETS["ema"]), images(3, seed=1)),
        Request(other, images(1, seed=2), adapt=False),
        Request(initial_state(small, PRESETS["tent"]), images(2, seed=3)),
    ]
    for request, result in zip(requests, step(small, requests), strict=True):
        (alone,) = step(small, [request])
        torch.testing.assert_close(result.logits, alone.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("update.optimizer.velocity", "the student's parameters or statistics would not be finite"),
        ("update.teacher.optimizer.velocity", "the student's loss is not finite"),
    ],
)
def test_a_step_that_is_not_finite_is_discarded(name, reason):
    student, teacher = STUDENTS["small"], TEACHERS["small"]
    state, _ = taught(student, teacher, of(lr=10, teacher_lr=10), [4])
    state = replace(state, tensors=state.tensors | {name: torch.full_like(state.tensors[name], 3e38)})
    outcome = teach(student, teacher, state, samples(4, first=30), NOW + 5)
    assert outcome.report.discarded
    assert outcome.report.reason == reason
    for key, value in state.tensors.items():
        assert key.startswith("update.replay") or torch.equal(outcome.state.tensors[key], value), key
    assert outcome.report.replay_images == 8
    assert outcome.state.step == state.step + 1
    assert all(value.isfinite().all() for value in outcome.state.tensors.values())


def test_a_loss_that_is_not_finite_is_discarded_and_told(small):
    teacher = TEACHERS["small"]
    state = initial_state(small, of(), teacher)
    huge = state.tensors | {"update.teacher.affine": torch.full_like(state.tensors["update.teacher.affine"], 3e38)}
    outcome = teach(small, teacher, replace(state, tensors=huge), samples(4), NOW)
    assert outcome.report.discarded
    assert outcome.report.reason == "the teacher's loss is not finite"
    assert outcome.report.teacher_loss is None
    assert torch.equal(outcome.state.tensors["update.affine"], state.tensors["update.affine"])


ONLY_ENTROPY = {"alpha": 1000.0, "beta": 0.0, "gamma": 0.0, "teacher_lr": 1e-4}  # sure of itself, deaf to the teacher


def test_a_lesson_that_would_leave_one_answer_to_everything_is_discarded(small):
    teacher, recipe = TEACHERS["small"], of("source", lr=1.0, **ONLY_ENTROPY)
    state = initial_state(small, recipe, teacher)
    outcome = teach(small, teacher, state, samples(4), NOW)
    assert outcome.report.discarded
    assert "the student's answers would collapse" in outcome.report.reason
    assert outcome.report.replay_images == 4
    for key, value in state.tensors.items():
        assert key.startswith("update.replay") or torch.equal(outcome.state.tensors[key], value), key
    gentle = of("source", lr=1e-5, **ONLY_ENTROPY)
    assert not teach(small, teacher, initial_state(small, gentle, teacher), samples(4), NOW).report.discarded


def of_one_answer(state: StreamState, name: str) -> StreamState:
    """With parameters by which a model answers one class with certainty, whatever it sees."""
    weight, bias = torch.zeros_like(state.tensors[name])
    return replace(state, tensors=state.tensors | {name: torch.stack([weight, bias + 50])})


def test_a_student_that_had_collapsed_goes_on_learning(small):
    teacher, recipe = TEACHERS["small"], of("source", lr=1.0, **ONLY_ENTROPY)
    state = of_one_answer(initial_state(small, recipe, teacher), "update.affine")
    assert not teach(small, teacher, state, samples(4), NOW).report.discarded


def test_samples_of_one_class_are_no_collapse(small):
    """The teacher is as sure as the student becomes that all of them are the same."""
    teacher, recipe = TEACHERS["small"], of("source", teacher_norm="source", lr=1.0, **ONLY_ENTROPY)
    state = of_one_answer(initial_state(small, recipe, teacher), "update.teacher.affine")
    assert not teach(small, teacher, state, samples(4), NOW).report.discarded


def test_diversity_is_the_entropy_of_the_mean_answer():
    assert diversity(torch.zeros(3, 5)) == pytest.approx(1)
    assert diversity(torch.eye(5)[:4] * 50) == pytest.approx(math.log(4) / math.log(5))
    assert diversity((torch.eye(5)[:1] * 50).repeat(4, 1)) == pytest.approx(0, abs=1e-6)


def test_a_taught_recipe_needs_its_teacher(small):
    with pytest.raises(HostingError, match=r"teacher 'teacher'.*host 'teacher' too.*update.teacher"):
        initial_state(small, of())
    with pytest.raises(HostingError, match=r"'teacher', and the model given is 'stranger'"):
        initial_state(small, of(), host_teacher(name="stranger"))
    with pytest.raises(HostingError, match=r"has 7 classes and 'small' has 5"):
        initial_state(small, of(), host_teacher(classes=7))
    with pytest.raises(HostingError, match=r"'teacher' cannot be the teacher of 'cema': 'alpha_bn' adapts batch"):
        initial_state(small, of(), TEACHERS["tokens"])
    with pytest.raises(HostingError, match=r"'tbr' adapts batch normalisation"):
        initial_state(STUDENTS["tokens"], of(), TEACHERS["small"])


def test_a_state_of_another_teacher_is_refused(small):
    teacher, stranger = TEACHERS["small"], host_teacher(seed=8)
    state, _ = taught(small, teacher, of(), [2])
    with pytest.raises(ForeignStateError, match=teacher.fingerprint) as caught:
        admit(decode(encode(state)), small, of(), stranger)
    assert stranger.fingerprint in str(caught.value)
    with pytest.raises(HostingError, match="teacher"):
        admit(decode(encode(state)), small)
    with pytest.raises(ValueError, match="taught by another model"):
        teach(small, stranger, state, samples(1), NOW)
    with pytest.raises(ValueError, match="belongs to model"):
        teach(host_small(seed=9), teacher, state, samples(1), NOW)
    with pytest.raises(ValueError, match="has no teacher"):
        teach(small, teacher, initial_state(small, PRESETS["tent"]), samples(1), NOW)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("update.replay.lengths", lambda value: value - 1),
        ("update.replay.lengths", lambda value: value + 10**6),
        ("update.replay.lengths", lambda value: value.flip(0)),
        ("update.replay.times", lambda value: value * math.nan),
        ("update.teacher.norm.var", lambda value: -value),
        ("update.teacher.affine", lambda value: value[:, :-1]),
        ("update.teacher.fingerprint", lambda value: value[:4]),
        ("update.teacher.fingerprint", lambda value: 255 - value),
    ],
)
def test_a_state_with_impossible_values_is_refused(small, name, change):
    teacher = TEACHERS["small"]
    recipe = of(teacher_norm="ema")
    state, _ = taught(small, teacher, recipe, [2])
    wrong = replace(state, tensors=state.tensors | {name: change(state.tensors[name]).contiguous()})
    with pytest.raises(StateError):
        admit(decode(encode(wrong)), small, recipe, teacher)
