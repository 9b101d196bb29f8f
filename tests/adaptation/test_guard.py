"""The collapse guard, and the options that all update members share."""

import math

import pytest
import torch
from small_net import images

from normstream.adaptation import (
    PRESETS,
    Alarm,
    HostedModel,
    Recipe,
    Report,
    Request,
    initial_state,
    step,
)
from normstream.adaptation.guard import Guard, finite
from normstream.adaptation.recipe import UPDATE_MEMBERS


def guarded(name="tent", norm="source", guard=None, **changes):
    return Recipe.parse({"norm": {"name": norm}, "update": {"name": name, "guard": guard or {}, **changes}})


def alone(hosted, recipe, batches, state=None):
    state, results = state or initial_state(hosted, recipe), []
    for batch in batches:
        (result,) = step(hosted, [Request(state, batch)])
        state = result.state
        results.append(result)
    return results


def noise(count, steps, first=0):
    return [images(count, seed=first + number) for number in range(steps)]


def figure(result, name):
    return result.state.tensors[f"update.guard.{name}"]


def unlike(one, other):
    """Names of the tensors that differ."""
    return {name for name, value in one.state.tensors.items() if not torch.equal(value, other.state.tensors[name])}


# What a discarded step moves: the guard's own, and the count of steps.
FIGURES = ("entropy", "mean_answer", "alarms", "in_a_row", "calm", "candidate")
GUARD = {"update.steps", *("update.guard." + name for name in FIGURES)}


def drawn(hosted, affine, label=1):
    """Parameters that answer one class with certainty: the last layer's biases point at it."""
    collapsed = affine.clone()
    weight = hosted.classifier.weight
    collapsed[1, -10:] += 50 * (weight[label] - weight.mean(0)) / weight.std()
    return collapsed


def test_the_figures_are_running_means_over_images():
    guard, answers = Guard(momentum=0.1), torch.rand(6, 4).softmax(1)
    memory = guard.initial(torch.zeros(2, 3), 4)
    entropy, mean = 1.0, [0.25] * 4
    for count in (1, 5):
        batch = answers[:count]
        _, memory = guard.watch(batch, memory)
        weight = 1 - 0.9**count
        new = sum(-sum(p * math.log(p) for p in row) for row in batch.tolist()) / count / math.log(4)
        entropy += weight * (new - entropy)
        mean = [m + weight * (sum(column) / count - m) for m, column in zip(mean, batch.T.tolist(), strict=True)]
    assert memory["entropy"].item() == pytest.approx(entropy, rel=1e-5)
    assert memory["mean_answer"].tolist() == pytest.approx(mean, rel=1e-5)


def one_hot(*classes):
    return torch.nn.functional.one_hot(torch.tensor(classes), 5).float()


@pytest.mark.parametrize(
    ("answer", "changes", "expected"),
    [
        (one_hot(0, 1, 2, 3, 4), {}, Alarm.ENTROPY_COLLAPSE),
        (one_hot(0, 1, 2, 3, 4), {"entropy_floor": 0}, Alarm.NONE),
        (0.99 * one_hot(2, 2) + 0.002, {}, Alarm.DIVERSITY_COLLAPSE),
        (0.99 * one_hot(2, 2) + 0.002, {"diversity_floor": 0}, Alarm.NONE),
        (0.9 * one_hot(0, 1, 2, 3, 4) + 0.02, {}, Alarm.NONE),
        (one_hot(0, 1) * math.nan, {"entropy_floor": 0, "diversity_floor": 0}, Alarm.NON_FINITE),
    ],
)
def test_each_collapse_has_its_alarm(answer, changes, expected):
    guard = Guard(**changes)
    memory = guard.initial(torch.zeros(2, 3), 5)
    alarms = []
    for _ in range(400):
        alarm, memory = guard.watch(answer, memory)
        alarms.append(alarm)
    assert alarms[-1] is expected
    if expected in (Alarm.ENTROPY_COLLAPSE, Alarm.DIVERSITY_COLLAPSE):
        # One batch is no collapse, however certain or alike its answers are.
        assert len(answer) * alarms.index(expected) > 200


def test_who_has_one_class_cannot_collapse():
    guard = Guard(momentum=1)
    memory = guard.initial(torch.zeros(2, 3), 1)
    assert guard.watch(torch.ones(4, 1), memory) == (Alarm.NONE, memory)


@pytest.mark.parametrize(
    ("fixture", "guard", "expected"),
    [
        ("small", {}, Alarm.DIVERSITY_COLLAPSE),
        ("tokens", {}, Alarm.DIVERSITY_COLLAPSE),
        ("small", {"diversity_floor": 0}, Alarm.ENTROPY_COLLAPSE),
    ],
)
def test_a_real_collapse_is_seen_discarded_and_undone(fixture, guard, expected, request):
    """TENT at a rate that ends in one class within a few hundred images."""
    hosted = request.getfixturevalue(fixture)
    results = alone(hosted, guarded(lr=1.0, rate="published", guard=guard), noise(16, 60))
    reports = [result.report for result in results]
    first = next(number for number, report in enumerate(reports) if report.alarm)
    assert results[first - 1].logits.argmax(1).unique().numel() == 1
    assert 10 < first < 50
    calm = reports[:first]
    assert all(report == Report(moved=True, alarm=Alarm.NONE, alarms=0, restored=False) for report in calm)
    for number in range(5):
        report = reports[first + number]
        assert report == Report(moved=False, alarm=expected, alarms=number + 1, restored=number == 4)
        if number < 4:
            assert unlike(results[first + number], results[first - 1]) <= GUARD
    # It was calm for too short a time to have any good parameters but the source's.
    back = results[first + 4].state.tensors
    fresh = initial_state(hosted, results[0].state.recipe).tensors
    kept = {"update.steps", "update.guard.alarms"}
    assert all(torch.equal(value, fresh[name]) for name, value in back.items() if name not in kept)
    assert results[first + 5].report == Report(moved=True, alarm=Alarm.NONE, alarms=5, restored=False)
    source = alone(hosted, PRESETS["source"], [images(16, seed=first + 5)])
    torch.testing.assert_close(results[first + 5].logits, source[0].logits)


def test_neighbours_of_a_collapse_are_untouched(small):
    sick, well = guarded(lr=1.0, rate="published"), guarded(lr=1.0, rate="published")
    states = [initial_state(small, sick), initial_state(small, well), initial_state(small, well)]
    # The second takes one step now and then, and does not collapse; the third meets an image that is not finite.
    alarmed, expected = 0, alone(small, well, noise(2, 12))
    for turn, batch in enumerate(noise(16, 36)):
        chosen = [0, 1] if turn % 3 == 0 else [0]
        batches = {0: batch, 1: images(2, seed=turn // 3), 2: torch.full((1, 3, 16, 16), math.nan)}
        chosen = [*chosen, 2] if turn == 30 else chosen
        results = step(small, [Request(states[stream], batches[stream]) for stream in chosen])
        for stream, result in zip(chosen, results, strict=True):
            states[stream] = result.state
        alarmed += results[0].report.alarm is not Alarm.NONE
        if 1 in chosen:
            torch.testing.assert_close(results[1].logits, expected[turn // 3].logits, rtol=1e-3, atol=1e-4)
            assert results[1].report == expected[turn // 3].report
        if 2 in chosen:
            assert results[2].report.alarm is Alarm.NON_FINITE
    assert alarmed >= 5


@pytest.mark.parametrize("norm", ["source", "ema"])
def test_what_is_not_finite_is_discarded_with_the_statistics(small, norm):
    healthy = alone(small, guarded(norm=norm, lr=0.1), noise(4, 3))
    (result,) = alone(small, None, [torch.full((2, 3, 16, 16), math.nan)], healthy[-1].state)
    assert result.report == Report(moved=False, alarm=Alarm.NON_FINITE, alarms=1, restored=False)
    assert result.logits.isnan().all()
    assert unlike(result, healthy[-1]) <= GUARD - {"update.guard.entropy", "update.guard.mean_answer"}
    (after,) = alone(small, None, [images(4, seed=9)], result.state)
    (without,) = alone(small, None, [images(4, seed=9)], healthy[-1].state)
    assert torch.equal(after.logits, without.logits)
    assert unlike(after, without) == {"update.steps", "update.guard.alarms", "update.guard.calm"}


@pytest.mark.parametrize("norm", ["source", "ema"])
def test_parameters_without_finite_answers_are_given_up(small, norm):
    """Every value is finite, the answers are not: nothing but other parameters helps."""
    state = initial_state(small, guarded(norm=norm))
    state.tensors["update.affine"] = torch.full_like(state.tensors["update.affine"], 1e30)
    results = alone(small, None, noise(3, 7), state)
    assert [result.report.alarm is Alarm.NON_FINITE for result in results] == [True] * 5 + [False] * 2
    assert [result.report.restored for result in results] == [False] * 4 + [True] + [False] * 2
    assert results[-1].logits.isfinite().all()


QUICK = {"momentum": 0.2, "patience": 3}  # 50 images are calm


def settled(hosted, recipe):
    """A stream that has had good parameters for some time, and what they are."""
    results = alone(hosted, recipe, noise(10, 16))
    good = figure(results[-1], "good")
    assert not torch.equal(good, hosted.layers.affine)
    assert all(result.report.alarm is Alarm.NONE for result in results)
    return results, good


def test_good_parameters_are_those_that_stayed_calm(small):
    results, _ = settled(small, guarded(lr=0.05, guard=QUICK))
    source = small.layers.affine
    later = [results[number].state.tensors["update.affine"] for number in (4, 9, 14)]
    for number, result in enumerate(results, start=1):
        # Every 50 images there is a candidate, and the one before it is good.
        assert torch.equal(figure(result, "good"), [source, source, *later][number // 5])
        assert torch.equal(figure(result, "candidate"), [source, *later][number // 5])
        assert figure(result, "calm") == 10 * (number % 5)


def test_an_alarm_drops_the_candidate(small):
    results, good = settled(small, guarded(lr=0.05, guard=QUICK))
    assert not torch.equal(figure(results[-1], "candidate"), good)
    (result,) = alone(small, None, [torch.full((2, 3, 16, 16), math.nan)], results[-1].state)
    assert torch.equal(figure(result, "candidate"), good)


@pytest.mark.parametrize("norm", ["source", "ema"])
def test_a_stream_goes_back_to_good_parameters_and_then_to_the_source(small, norm):
    recipe = guarded(norm=norm, lr=0.05, guard=QUICK)
    before, good = settled(small, recipe)
    fresh = initial_state(small, recipe).tensors
    state = before[-1].state
    for expected in (good, small.layers.affine):
        state.tensors["update.affine"] = drawn(small, state.tensors["update.affine"])
        results = alone(small, None, noise(10, 12, first=50), state)
        number = next(number for number, result in enumerate(results) if result.report.restored)
        alarms = [result.report.alarm is not Alarm.NONE for result in results[number - 2 : number + 2]]
        assert alarms == [True, True, True, False]
        back = results[number].state.tensors
        assert torch.equal(back["update.affine"], expected)
        for name, value in back.items():
            if name not in ("update.affine", "update.steps", "update.guard.alarms"):
                assert torch.equal(value, fresh[name]), name
        state = results[number].state
    assert figure(results[number], "alarms") == 6


@pytest.mark.parametrize("name", ["cotta", "rotta"])
def test_teachers_go_back_too(small, name):
    quick = {"cotta": {"views": 1, "threshold": 1.0}, "rotta": {"update_every": 10, "capacity": 10}}[name]
    before, good = settled(small, guarded(name, teacher_rate=0.5, lr=0.05, guard=QUICK, **quick))
    # What answers is what is good: the teacher, at the milestone before the last.
    assert torch.equal(good, before[9].state.tensors["update.memory.teacher"])
    assert not torch.equal(good, before[9].state.tensors["update.affine"])
    state = before[-1].state
    for part in ("update.affine", "update.memory.teacher"):
        state.tensors[part] = drawn(small, state.tensors[part])
    *_, last = (result for result in alone(small, None, noise(10, 12, first=50), state) if result.report.restored)
    for part in ("affine", "memory.teacher"):
        assert torch.equal(last.state.tensors[f"update.{part}"], good)


def test_a_camera_that_looks_at_one_thing_keeps_what_it_learnt(small):
    """The answers are all alike: while the source says the same, steps are discarded but nothing is undone."""
    state, still = initial_state(small, guarded(guard=QUICK)), images(1, seed=3).repeat(8, 1, 1, 1)
    label = int(alone(small, PRESETS["source"], [still])[0].logits[0].argmax())
    learnt = state.tensors["update.affine"] = drawn(small, small.layers.affine, label)
    results = alone(small, None, [still] * 20, state)
    reports = [result.report for result in results]
    assert sum(report.alarm is not Alarm.NONE for report in reports) > 10
    assert not any(report.restored for report in reports)
    torch.testing.assert_close(results[-1].state.tensors["update.affine"], learnt, rtol=0, atol=1e-3)
    # The same certainty, and another class than the source's.
    state = results[-1].state
    state.tensors["update.affine"] = drawn(small, small.layers.affine, 4 - label)
    assert any(result.report.restored for result in alone(small, None, [still] * 3, state))


@pytest.mark.parametrize("name", sorted(UPDATE_MEMBERS))
@pytest.mark.parametrize("fixture", ["small", "tokens"])
def test_healthy_streams_are_left_alone(name, fixture, request):
    hosted: HostedModel = request.getfixturevalue(fixture)
    cheap = {"views": 2} if name == "cotta" else {}
    recipe = PRESETS[name] if fixture == "small" and name != "cotta" else guarded(name, **cheap)
    for count, steps in ((1, 60), (7, 40), (64, 12)):
        results = alone(hosted, recipe, noise(count, steps))
        assert all(result.report.alarm is Alarm.NONE for result in results)
        assert not any(result.report.restored for result in results)


@pytest.mark.parametrize("classes", [2, 5, 1000])
@pytest.mark.parametrize("certainty", [0.1, 3.0, 10.0])
def test_random_answers_of_any_certainty_raise_no_alarm(classes, certainty):
    guard, draw = Guard(), torch.Generator().manual_seed(0)
    memory = guard.initial(torch.zeros(2, 3), classes)
    for _ in range(2000):
        alarm, memory = guard.watch((certainty * torch.randn(1, classes, generator=draw)).softmax(1), memory)
        assert alarm is Alarm.NONE


@pytest.mark.parametrize(
    ("field", "value"), [("entropy_floor", 1.0), ("diversity_floor", -0.1), ("momentum", 0.0), ("patience", 0)]
)
def test_impossible_guards_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        guarded(guard={field: value})


@pytest.mark.parametrize("rate", ["per_image", "published"])
def test_any_member_takes_the_pull(small, rate):
    recipes = [guarded(rate=rate, lr=0.1, source_pull=pull) for pull in (0.3, 0.0)]
    pulled, free = (alone(small, recipe, [images(8)]) for recipe in recipes)
    weight = 0.3 if rate == "published" else 1 - 0.7 ** (8 / 64)
    expected = torch.lerp(free[0].state.tensors["update.affine"], small.layers.affine, weight)
    torch.testing.assert_close(pulled[0].state.tensors["update.affine"], expected)


@pytest.mark.parametrize("name", sorted(UPDATE_MEMBERS))
def test_a_stream_that_forgets_is_a_new_stream(small, name):
    """`reset_every` (RDumb): all but the counts of steps and alarms is a new stream's."""
    member = PRESETS[name].update.model_copy(update={"reset_every": 3, "lr": 0.1})
    results = alone(small, Recipe(norm={"name": "bn1"}, update=member), noise(8, 7))
    fresh = initial_state(small, results[0].state.recipe).tensors
    learnt = [key for key in fresh if key not in {"update.steps", "update.guard.alarms"}]
    for number, result in enumerate(results, start=1):
        state = result.state.tensors
        assert state["update.steps"] == number
        assert figure(result, "calm") == 8 * (number % 3)
        if number % 3 == 0:
            assert all(torch.equal(state[key], fresh[key]) for key in learnt)
    # And so it answers as a new stream does.
    (new,) = alone(small, results[0].state.recipe, noise(8, 1, first=6))
    assert torch.equal(new.logits, results[6].logits)


def test_a_stream_that_does_not_forget_goes_on(small):
    results = alone(small, guarded(norm="bn1", lr=0.1), noise(8, 6))
    assert all(not torch.equal(result.state.tensors["update.affine"], small.layers.affine) for result in results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.int64, torch.bool])
def test_finite_is_what_it_says(dtype):
    values = torch.arange(5000).remainder(7).to(dtype)
    assert finite(values)
    assert finite(values[:0])
    assert finite(values[0])
    for bad in (math.nan, math.inf, -math.inf) if dtype.is_floating_point else ():
        for place in (0, 2500, 4999):
            poisoned = values.clone()
            poisoned[place] = bad
            assert not finite(poisoned)
            assert not finite(poisoned.view(50, 100))


def test_an_alarm_does_not_keep_a_stream_from_beginning_anew(small):
    """Else a collapsed stream, whose every step is discarded, could not follow its method's own way out."""
    guard = {"entropy_floor": 0.9999, "momentum": 1, "patience": 10_000}
    member = {"name": "tent", "reset_every": 3, "lr": 0.1, "guard": guard}
    recipe = Recipe.parse({"norm": {"name": "ema"}, "update": member})
    results = alone(small, recipe, noise(8, 3))
    assert [result.report.alarm for result in results] == [Alarm.ENTROPY_COLLAPSE] * 3
    assert [result.report.restored for result in results] == [False, False, True]
    last, fresh = results[-1].state.tensors, initial_state(small, recipe).tensors
    assert last["update.guard.alarms"] == 3
    assert all(
        torch.equal(last[key], fresh[key]) for key in fresh if key not in {"update.steps", "update.guard.alarms"}
    )
