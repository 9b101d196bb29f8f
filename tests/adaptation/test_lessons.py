"""Streams that learn from labels while they are served: alone, beside others, and with all that adapts at test time."""

import gc
import re
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from pairs import coloured
from small_net import SIZE, host_small, host_tokens, images
from torch.nn.functional import linear

from normstream.adaptation import (
    PRESETS,
    ModelSpec,
    NoClassYet,
    Recipe,
    Request,
    StateError,
    admit,
    decode,
    decode_learnt,
    encode,
    encode_learnt,
    initial_state,
    learn,
    load_model,
    names_of,
    step,
)
from normstream.adaptation.continual import Learner
from normstream.adaptation.state import initial_slots, model_of
from normstream.adaptation.tensor_slots import slot

PAIRS = [["red", "green"] * 3, ["blue", "grey"] * 3]
HOSTS = {"small": host_small(), "tokens": host_tokens()}
REPLAY = {"keep": "images", "encoding": "png", "capacity": 20, "batch": 6}
HEAD, ALL, NEW = {"learns": "head", "norm": None}, {"learns": "all"}, {"head": "new"}
ADAB2N, BN, DERPP = {"norm": {"name": "adab2n"}}, {"norm": {"name": "bn"}}, {"method": {"name": "derpp"}}
ROTTA = {"name": "rotta", "capacity": 8, "update_every": 4}
COTTA = {"name": "cotta", "views": 2}


def of(learning, norm=None, update=None, output=None):
    """A recipe that learns from labels, with members by name or by name and parameters."""
    slots = {"norm": norm, "update": update, "output": output}
    chosen = {name: {"name": it} if isinstance(it, str) else it for name, it in slots.items() if it}
    return Recipe.parse(chosen | {"learn": {"replay": REPLAY} | learning})


# Whose network is the hosted one but for norm layers and head. A name has that of the norm that lessons go through, and
# where it has none they go through none.
SHARED = {
    "affine, adab2n": of(ADAB2N),
    "affine, null": of({"norm": None}),
    "affine, bn, derpp": of(BN | DERPP),
    "head, adab2n, unmix_tns": of(ADAB2N | {"learns": "head"}, "unmix_tns"),
    "head, features": of(HEAD | {"replay": {"keep": "features", "capacity": 20, "batch": 6}}),
    "adab2n, ema x prior": of(ADAB2N | DERPP, "ema", None, "prior"),
    "bn, iabn x t3a": of(BN, "iabn", None, "t3a"),
    "adab2n, n_prior x shift": of(ADAB2N, "n_prior", None, "shift"),
    "adab2n, tbr x lame": of(ADAB2N, "tbr", None, "lame"),
    "ema x tent": of(HEAD, "ema", "tent"),
    "bn, bn1 x eata x shift": of(HEAD | BN, "bn1", "eata", "shift"),
    "alpha_bn x rotta x prior": of(HEAD, "alpha_bn", ROTTA, "prior"),
    "unmix_tns x cotta x t3a": of(HEAD | DERPP, "unmix_tns", COTTA, "t3a"),
    "adab2n, source x sar": of(ADAB2N | {"learns": "head"}, None, "sar"),
    "bn1 x roid": of(HEAD, "bn1", "roid"),
    "source x eta": of(HEAD, None, "eta"),
    "tbr x deyo": of(HEAD, "tbr", "deyo"),
    "alpha_bn x core": of(HEAD, "alpha_bn", "core"),
}
ALONE = {
    "all, adab2n, t3a": of(ALL | ADAB2N, None, None, "t3a"),
    "all, null": of(ALL | {"norm": None}),
    "gn x prior": of({"norm": {"name": "gn", "groups": 2}}, None, None, "prior"),
    "cn x lame": of({"norm": {"name": "cn", "groups": 2}}, None, None, "lame"),
}
TOKENS = {
    "affine": of({"norm": None}),
    "ln_align x t3a": of({"norm": None}, "ln_align", None, "t3a"),
    "sar": of(HEAD, None, "sar"),
    "ln_align x tent x shift": of(HEAD, "ln_align", "tent", "shift"),
    "all": of(ALL | {"norm": None}),
}
CASES = [("small", recipe) for recipe in (SHARED | ALONE).values()] + [("tokens", recipe) for recipe in TOKENS.values()]
NAMES = [f"small-{name}" for name in SHARED | ALONE] + [f"tokens-{name}" for name in TOKENS]
every_recipe = pytest.mark.parametrize(("host", "recipe"), CASES, ids=NAMES)


def anew(recipe):
    """The recipe with a head that begins without classes."""
    return recipe.model_copy(update={"learn": recipe.learn.model_copy(update=NEW)})


def unlearning(recipe):
    """The recipe without learning."""
    return recipe.model_copy(update={"learn": None})


def taught(hosted, state, pair=0, lessons=2, seed=0):
    """The state after lessons on a pair of colours."""
    for number in range(lessons):
        state = learn(hosted, state, coloured(PAIRS[pair], 10 * seed + number), PAIRS[pair]).state
    return state


def walk(hosted, state, seed):
    """Both at once, as a stream does: a lesson, a batch, a lesson with new classes, a batch. State and answers."""
    answers = []
    for pair in (0, 1):
        state = taught(hosted, state, pair, 1, seed + pair)
        (result,) = step(hosted, [Request(state, images(2 + pair, seed=seed + pair))])
        state = result.state
        answers.append(result.logits)
    return state, answers


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def all_of(state):
    return state.tensors | ({} if state.learnt is None else state.learnt.tensors)


def close_states(one, other):
    assert one.step == other.step
    assert all_of(one).keys() == all_of(other).keys()
    for name, value in all_of(one).items():
        close(all_of(other)[name], value)


def same(one, other):
    mine, its = all_of(one), all_of(other)
    return mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)


@pytest.mark.parametrize(("name", "recipe"), [(name, recipe) for name, (_, recipe) in zip(NAMES, CASES, strict=True)])
def test_a_case_s_lessons_go_through_the_norm_that_its_name_says(name, recipe):
    """A default that changes must not take a norm out of all the tests here."""
    said = {"adab2n", "bn", "cn", "gn"} & set(re.findall(r"\w+", name))
    assert said == (set() if recipe.learn.norm is None else {recipe.learn.norm.name})


@pytest.mark.parametrize("host", HOSTS)
def test_many_streams_in_one_batch_equal_each_alone(host):
    """Two of each recipe that learns, one with a head of its own from the start, and their like that do not learn."""
    hosted = HOSTS[host]
    recipes = [recipe for place, recipe in CASES if place == host]
    recipes = [*recipes, *map(anew, recipes), *map(unlearning, recipes), PRESETS["source"]]
    states, alone = [], []
    for seed, recipe in enumerate(recipes):
        state = initial_state(hosted, recipe)
        states.append(state if recipe.learn is None else taught(hosted, state, seed=seed))
    alone, together = list(states), list(states)
    for turn in range(2):
        batches = [images(1 + seed % 3, seed=10 * seed + turn) for seed in range(len(recipes))]
        results = step(hosted, [Request(*each) for each in zip(together, batches, strict=True)])
        together = [result.state for result in results]
        for place, (state, batch, result) in enumerate(zip(alone, batches, results, strict=True)):
            (own,) = step(hosted, [Request(state, batch)])
            close(result.logits, own.logits)
            close(result.features, own.features)
            close_states(result.state, own.state)
            alone[place] = own.state


@pytest.mark.parametrize(
    ("host", "recipe"),
    [(host, it) for host, it in CASES if it.learn.norm is None or it.learn.norm.name not in {"gn", "cn"}],
)
def test_a_stream_that_has_learnt_nothing_answers_as_one_that_does_not_learn(host, recipe):
    hosted = HOSTS[host]
    learning, plain = initial_state(hosted, recipe), initial_state(hosted, unlearning(recipe))
    for seed in range(2):
        results = [step(hosted, [Request(state, images(3, seed=seed))])[0] for state in (learning, plain)]
        learning, plain = (result.state for result in results)
        close(results[0].logits, results[1].logits)
        for name, value in plain.tensors.items():
            close(learning.tensors[name], value)


@every_recipe
def test_what_was_learnt_is_served_as_its_learner_predicts(host, recipe):
    hosted = HOSTS[host]
    state = taught(hosted, initial_state(hosted, recipe))
    pixels = coloured(["red", "blue", "grey"])
    frames = torch.from_numpy(hosted.preprocessing.normalise(pixels)).permute(0, 3, 1, 2)
    plain = replace(state, recipe=Recipe(learn=recipe.learn), tensors={})
    (result,) = step(hosted, [Request(plain, frames, adapt=False)])
    learner = Learner(hosted, recipe.learn)
    close(result.logits, learner.predict(state.learnt.tensors, pixels))
    assert names_of(hosted, state) == learner.names(state.learnt.tensors) == ("0", "1", "2", "3", "4", "red", "green")
    head = slot(state.learnt.tensors, "head")
    close(linear(result.features, head["weight"], head["bias"]), result.logits)


@every_recipe
def test_a_reload_continues_exactly(host, recipe):
    hosted = HOSTS[host]
    half, _ = walk(hosted, initial_state(hosted, recipe), 0)
    whole = admit(decode(encode(half)), hosted, recipe)
    apart = replace(decode(encode(replace(half, learnt=None))), learnt=decode_learnt(encode_learnt(half)))
    assert same(half, whole)
    assert encode(whole) == encode(half) == encode(apart)
    expected, answers = walk(hosted, half, 5)
    for reloaded in (whole, apart):
        state, again = walk(hosted, reloaded, 5)
        assert same(state, expected)
        assert all(map(torch.equal, again, answers))


@every_recipe
def test_a_new_stream_is_what_it_was_before_others_learnt(host, recipe):
    hosted = HOSTS[host]
    first = initial_state(hosted, recipe)
    weights = {name: value.clone() for name, value in hosted.network.state_dict().items()}
    given = {name: value.clone() for name, value in all_of(first).items()}
    (before,) = step(hosted, [Request(first, images(2))])
    walk(hosted, first, 0)
    again = initial_state(hosted, recipe)
    (after,) = step(hosted, [Request(again, images(2))])
    assert same(again, first)
    assert torch.equal(before.logits, after.logits)
    assert all(torch.equal(first_value, given[name]) for name, first_value in all_of(first).items())
    assert all(torch.equal(value, weights[name]) for name, value in hosted.network.state_dict().items())


@every_recipe
def test_new_classes_restart_only_what_no_longer_fits(host, recipe):
    hosted = HOSTS[host]
    (result,) = step(hosted, [Request(taught(hosted, initial_state(hosted, recipe)), images(3))])
    state = result.state
    assert taught(hosted, state, 0, 1).tensors is state.tensors
    grown = taught(hosted, state, 1, 1)
    assert grown.step == state.step == 1
    fresh = initial_slots(hosted, recipe, grown.learnt)
    assert grown.tensors.keys() == fresh.keys()
    fits = {name: value.shape == fresh[name].shape for name, value in state.tensors.items()}
    assert all(fits[name] for name in fits if name.startswith(("norm.", "update.affine", "update.optimizer.")))
    if not all(fits[name] for name in fits if name.startswith("output.")):
        fits |= dict.fromkeys((name for name in fits if name.startswith("output.")), False)
    for name, value in grown.tensors.items():
        assert torch.equal(value, (state.tensors if fits[name] else fresh)[name]), name
    admit(grown, hosted)  # What there is fits what was learnt.


@every_recipe
@pytest.mark.parametrize("poison", [float("nan"), 1e30])
def test_poison_stays_in_its_own_stream(host, recipe, poison):
    hosted = HOSTS[host]
    state = taught(hosted, initial_state(hosted, recipe))
    clean = [Request(state, images(2)), Request(initial_state(hosted, unlearning(recipe)), images(2, seed=1))]
    poisoned = Request(taught(hosted, initial_state(hosted, recipe), 1), torch.full((2, *SIZE), poison))
    alone = [step(hosted, [request])[0] for request in clean]
    for result, own in zip(step(hosted, [clean[0], poisoned, clean[1]])[::2], alone, strict=True):
        close(result.logits, own.logits)
        close_states(result.state, own.state)


@every_recipe
def test_a_stream_without_classes_cannot_answer(host, recipe):
    hosted = HOSTS[host]
    state = initial_state(hosted, anew(recipe))
    assert names_of(hosted, state) == ()
    with pytest.raises(NoClassYet, match="learn from labelled images first"):
        step(hosted, [Request(state, images(1))])
    assert same(admit(decode(encode(state)), hosted, state.recipe), state)
    one = learn(hosted, state, coloured(["red"]), ["red"]).state
    assert names_of(hosted, one) == ("red",)
    (result,) = step(hosted, [Request(one, images(3))])
    assert result.logits.isfinite().all()
    state, answers = walk(hosted, state, 0)
    assert [each.shape[1] for each in answers] == [2, 4]
    assert names_of(hosted, state) == ("red", "green", "blue", "grey")


@pytest.mark.parametrize("recipe", [SHARED["adab2n, ema x prior"], ALONE["all, null"]], ids=["shared", "alone"])
def test_the_model_as_learnt_is_made_once_and_goes_with_what_was_learnt(recipe):
    state = taught(HOSTS["small"], initial_state(HOSTS["small"], recipe))
    model = model_of(HOSTS["small"], state)
    assert model_of(HOSTS["small"], replace(state, step=7)) is model
    assert model.network is HOSTS["small"].network
    left = weakref.ref(model)
    del state, model
    gc.collect()
    assert left() is None


def test_a_calibration_that_comes_later_reaches_what_was_learnt():
    hosted, other = host_small(), host_small(seed=1)
    state = taught(hosted, initial_state(hosted, of(HEAD, None, None, "shift")))
    before = model_of(hosted, state)
    later = replace(other.calibration, fingerprint=hosted.fingerprint)
    hosted.calibration = later
    after = model_of(hosted, state)
    assert after is not before
    assert torch.equal(after.calibration.feature_mean, later.feature_mean)
    assert model_of(hosted, state) is after


def test_learning_helps_who_is_served():
    hosted, recipe = HOSTS["small"], of(NEW | {"descent": {"lr": 0.1}}, "ema")
    state = taught(hosted, initial_state(hosted, recipe), lessons=30)
    frames = torch.from_numpy(hosted.preprocessing.normalise(coloured(PAIRS[0], 99))).permute(0, 3, 1, 2)
    (result,) = step(hosted, [Request(state, frames)])
    assert [state.learnt.names[index] for index in result.logits.argmax(1)] == PAIRS[0]
    assert (state.learnt.lessons, state.learnt.kept) == (30, 20)
    assert 0 < state.learnt.kept_bytes < state.learnt.bytes < state.bytes


def test_a_lesson_from_features_is_that_from_their_images():
    hosted, recipe = HOSTS["small"], SHARED["head, features"]
    state, pixels = initial_state(hosted, recipe), coloured(PAIRS[0])
    frames = torch.from_numpy(hosted.preprocessing.normalise(pixels)).permute(0, 3, 1, 2)
    (result,) = step(hosted, [Request(state, frames)])
    close_states(
        learn(hosted, state, result.features.numpy(), PAIRS[0]).state, learn(hosted, state, pixels, PAIRS[0]).state
    )


def test_a_lesson_that_would_not_be_finite_is_discarded():
    hosted, recipe = HOSTS["small"], of({"norm": None, "descent": {"lr": 10}})
    state = initial_state(hosted, recipe)
    for turn in range(60):
        outcome = learn(hosted, state, coloured(PAIRS[0], turn), PAIRS[0])
        if outcome.report.discarded:
            assert outcome.state is state
            assert outcome.report.steps == state.learnt.lessons
            return
        state = outcome.state
    pytest.fail("no lesson was too much")


@pytest.mark.parametrize(
    ("recipe", "examples", "labels", "message"),
    [
        (PRESETS["ema"], coloured(["red"]), ["red"], "learns nothing from labels"),
        (of({"batch": 2}), coloured(["red"] * 3), ["red"] * 3, "at most 2 samples, and there are 3"),
        (of({}), coloured(["red"]), ["red", "green"], "2 labels are given for 1 examples"),
        (of({}), np.zeros((1, 10), np.float32), ["red"], r"expected uint8 \[B, 16, 16, 3\] with"),
        (of(HEAD | {"replay": {}}), np.zeros((1, 9), np.float32), ["red"], r"or float32 \[B, 10\]"),
        (of({"max_new_classes": 0}), coloured(["red"]), ["red"], "max_new_classes is 0"),
    ],
)
def test_what_cannot_be_learnt_is_refused(recipe, examples, labels, message):
    with pytest.raises(ValueError, match=message):
        learn(HOSTS["small"], initial_state(HOSTS["small"], recipe), examples, labels)


def test_a_memory_of_damaged_images_is_told():
    hosted = HOSTS["small"]
    state = taught(hosted, initial_state(hosted, of({})))
    tensors = state.learnt.tensors
    damaged = replace(state.learnt, tensors=tensors | {"replay.data": torch.zeros_like(tensors["replay.data"])})
    state = admit(decode(encode(replace(state, learnt=damaged))), hosted)
    with pytest.raises(StateError, match="the memory holds an image that is none of the network's size"):
        taught(hosted, state, lessons=1)
    step(hosted, [Request(state, images(2))])  # It is of no use to predictions, and no harm.


def test_a_state_of_another_model_is_refused():
    state, other = initial_state(HOSTS["small"], of({})), host_small(seed=1)
    with pytest.raises(ValueError, match="belongs to model 'small'"):
        learn(other, state, coloured(["red"]), ["red"])
    with pytest.raises(ValueError, match="what was learnt is of model"):
        step(other, [Request(replace(state, fingerprint=other.fingerprint), images(1))])


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"update": {"name": "cema"}, "learn": {}}, ["'cema'", "leave one of the two out"]),
        ({"update": {"name": "tent"}, "learn": {}}, ["'tent'", "learns: affine", "use learns: head"]),
        ({"norm": {"name": "ema"}, "learn": {"learns": "all"}}, ["network of the stream's own", "leave them out"]),
        ({"update": {"name": "tent"}, "learn": {"learns": "head", "norm": {"name": "gn"}}}, ["leave them out"]),
        ({"learn": {"unlabelled": "features"}}, ["learns: head and norm: null"]),
        ({"learn": {"unlabelled": "features", **HEAD, "replay": {"keep": "images"}}}, ["replay.keep"]),
        ({"norm": {"name": "ema"}, "learn": {"unlabelled": "features", **HEAD}}, ["nothing that adapts"]),
        ({"update": {"name": "tent"}, "learn": {"replay": {"keep": "features"}, **HEAD}}, ["leave norm and update"]),
        ({"learn": {"batch": 513}}, ["batch", "513", "less than or equal to 512"]),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_remedy(recipe, words):
    with pytest.raises(ValueError, match=r".") as caught:
        Recipe.parse(recipe)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("recipe", [*SHARED.values(), *ALONE.values(), *(PRESETS[name] for name in ("er_ace", "gn"))])
def test_a_recipe_that_learns_is_a_value(recipe):
    """Its text leaves a null norm out as it does an empty slot, and is read as the same recipe."""
    assert Recipe.parse(recipe.canonical()) == recipe
    assert Recipe.parse(recipe.model_dump(mode="json", exclude_none=True)) == recipe
    assert ('"learn":' in recipe.canonical(), '"learn":' in unlearning(recipe).canonical()) == (True, False)


@pytest.mark.parametrize(
    ("slot_of", "name"),
    [("method", "er_ace"), ("method", "derpp"), *(("norm", name) for name in ("adab2n", "bn", "cn", "gn"))],
)
def test_presets_that_learn_keep_images(slot_of, name):
    learning = PRESETS[name].learn
    assert getattr(learning, slot_of).name == name
    assert (learning.replay.keep, learning.unlabelled, learning.head) == ("images", "images", "trained")


def test_a_state_moves_to_a_device_whole_and_stays_itself_where_it_is():
    host, recipe = HOSTS["small"], Recipe.model_validate({"norm": {"name": "ema"}, "learn": {}})
    state = initial_state(host, recipe)
    moved = state.to(torch.device("meta"))
    learnt = [value for name, value in moved.learnt.tensors.items() if name.startswith(("network.", "head."))]
    assert moved.tensors
    assert learnt
    assert {value.device.type for value in (*moved.tensors.values(), *learnt)} == {"meta"}
    assert state.to(host.device).learnt is state.learnt  # so that what was made for it is found again


def test_a_new_class_leaves_a_trained_network_what_it_knows():
    """A trained network's moments are large: the norms' own loss must not drown what is learnt from the labels."""
    host = load_model(ModelSpec.parse("tf_efficientnet_lite0"))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
    outcome = learn(host, initial_state(host, PRESETS["adab2n"]), pixels, ["zebra", "tench", "a thing that is new"])
    assert 0 < outcome.report.penalty < outcome.report.loss
