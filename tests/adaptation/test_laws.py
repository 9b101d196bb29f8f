"""Laws that every member obeys, alone and beside every other in one batch."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_net import SIZE, host_small, host_tokens, images
from timm_nets import host_group_norm, host_vit

from normstream.adaptation import PRESETS, Recipe, Request, admit, decode, encode, initial_state, step
from normstream.adaptation.norm.alpha_bn import AlphaBN
from normstream.adaptation.norm.ema import EMA
from normstream.adaptation.norm.n_prior import NPrior
from normstream.adaptation.recipe import SLOTS


def of(norm=None, update=None, output=None):
    """A recipe of members by name, or by name and parameters; a slot without one is off."""
    slots = {"norm": norm, "update": update, "output": output}
    return Recipe.parse({slot: {"name": it} if isinstance(it, str) else it for slot, it in slots.items() if it})


# On a network of batch norms.
BATCH_NORM_RECIPES = {
    **{name: recipe for name, recipe in PRESETS.items() if not (recipe.norm.batch_agnostic or recipe.teacher)},
    "alpha_bn strong": Recipe(norm=AlphaBN(alpha=0.7)),
    "ema fast": Recipe(norm=EMA(momentum=0.3, alpha=1.0)),
    "n_prior weak": Recipe(norm=NPrior(prior_images=0.5)),
    "ema x tent adam": of("ema", {"name": "tent", "optimizer": "adam"}),
    "unmix_tns x tent x lame": of("unmix_tns", "tent", "lame"),
    "alpha_bn x eata x t3a": of("alpha_bn", "eata", "t3a"),
    "unmix_tns x rotta": of("unmix_tns", {"name": "rotta", "capacity": 8, "update_every": 4}),
    "unmix_tns x cotta x prior": of("unmix_tns", {"name": "cotta", "views": 2}, "prior"),
    "tbr x eta x shift": of("tbr", "eta", "shift"),
    "iabn x deyo": of("iabn", {"name": "deyo", "reset_every": 2}),
    "n_prior x core x lame": of("n_prior", "core", "lame"),
    "ema x roid x prior": of("ema", {"name": "roid", "optimizer": "adam"}, "prior"),
    "source x sar": of(None, "sar"),
}
# On a network of layer and group norms.
SAMPLE_NORM_RECIPES = {
    "ln_align": of("ln_align"),
    "ln_align fast": of({"name": "ln_align", "momentum": 0.3, "alpha": 1}),
    "tent x shift": of(None, "tent", "shift"),
    "sar": of(None, "sar"),
    "ln_align x eata x t3a": of("ln_align", "eata", "t3a"),
    "ln_align x cotta x lame": of("ln_align", {"name": "cotta", "views": 2}, "lame"),
    "rotta": of(None, {"name": "rotta", "capacity": 8, "update_every": 4}),
}
# On networks of timm.
VIT_RECIPES = {"tent x shift": of(None, "tent", "shift"), "ln_align x sar": of("ln_align", "sar")}
GROUP_NORM_RECIPES = {"sar": of(None, "sar"), "ln_align x tent x t3a": of("ln_align", "tent", "t3a")}
MEMBERS = {name: member for members in SLOTS.values() for name, member in members.items()}
SIZES = (1, 2, 3, 7, 64)

HOSTS = {"small": host_small(), "tokens": host_tokens(), "vit": host_vit(), "group norm": host_group_norm()}
RECIPES = {
    "small": BATCH_NORM_RECIPES,
    "tokens": SAMPLE_NORM_RECIPES,
    "vit": VIT_RECIPES,
    "group norm": GROUP_NORM_RECIPES,
}
CASES = [(host, name) for host, recipes in RECIPES.items() for name in recipes]

every_recipe = pytest.mark.parametrize(
    ("hosted", "recipe"),
    [(HOSTS[host], RECIPES[host][name]) for host, name in CASES],
    ids=[f"{host}-{name}" for host, name in CASES],
)


@pytest.fixture(autouse=True, scope="module")
def several_threads():
    """How work is cut up among threads must not show."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_members_are_those_we_know():
    assert {slot: sorted(members) for slot, members in SLOTS.items()} == {
        "norm": ["alpha_bn", "bn1", "ema", "iabn", "ln_align", "n_prior", "source", "tbr", "unmix_tns"],
        "update": ["cema", "core", "cotta", "deyo", "eata", "eta", "roid", "rotta", "sar", "tent"],
        "output": ["lame", "prior", "shift", "t3a"],
        "learn.method": ["derpp", "er_ace"],
        "learn.norm": ["adab2n", "bn", "cn", "gn"],
    }
    assert all(member.model_fields["name"].default == name for name, member in MEMBERS.items())


@pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS.keys())
def test_the_docstring_cites_its_source(member):
    assert "arXiv:" in member.__doc__


def run(hosted, recipe, batches):
    """Serve one stream alone, batch after batch."""
    state, logits = initial_state(hosted, recipe), []
    for batch in batches:
        (result,) = step(hosted, [Request(state, batch)])
        state = result.state
        logits.append(result.logits)
    return state, logits


def same(one, other):
    return one.step == other.step and all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("host", ["small", "tokens"])
@settings(max_examples=40, deadline=None)
@given(data=st.data(), rounds=st.integers(1, 3))
def test_many_streams_in_one_batch_equal_each_alone(host, data, rounds):
    hosted = HOSTS[host]
    streams = st.tuples(st.sampled_from(sorted(RECIPES[host])), st.integers(1, 4), st.integers(0, 9))
    plan = data.draw(st.lists(streams, min_size=1, max_size=6))
    recipes = [RECIPES[host][name] for name, _, _ in plan]
    batches = [[images(count, seed=10 * seed + turn) for turn in range(rounds)] for _, count, seed in plan]
    states = [initial_state(hosted, recipe) for recipe in recipes]
    for turn in range(rounds):
        results = step(hosted, [Request(state, batch[turn]) for state, batch in zip(states, batches, strict=True)])
        states = [result.state for result in results]
    for recipe, batch, state, result in zip(recipes, batches, states, results, strict=True):
        alone, logits = run(hosted, recipe, batch)
        close(result.logits, logits[-1])
        assert state.step == alone.step == rounds
        for name, value in alone.tensors.items():
            close(state.tensors[name], value)


@pytest.mark.parametrize("host", ["vit", "group norm"])
def test_streams_of_networks_of_timm_equal_each_alone(host):
    """Two streams of each recipe that learn, and one that does not; two rounds."""
    hosted, recipes = HOSTS[host], [*RECIPES[host].values(), *RECIPES[host].values(), PRESETS["source"]]
    batches = [[images(1 + index, seed=10 * index + turn) for turn in range(2)] for index in range(len(recipes))]
    states = [initial_state(hosted, recipe) for recipe in recipes]
    for turn in range(2):
        results = step(hosted, [Request(state, batch[turn]) for state, batch in zip(states, batches, strict=True)])
        states = [result.state for result in results]
    for recipe, batch, state, result in zip(recipes, batches, states, results, strict=True):
        alone, logits = run(hosted, recipe, batch)
        close(result.logits, logits[-1])
        assert recipe.update is None or result.report.moved
        for name, value in alone.tensors.items():
            close(state.tensors[name], value)


@every_recipe
def test_a_step_changes_nothing_it_was_given(hosted, recipe):
    state, batch = initial_state(hosted, recipe), images(3)
    weights = {name: value.clone() for name, value in hosted.network.state_dict().items()}
    before, pixels = {name: value.clone() for name, value in state.tensors.items()}, batch.clone()
    step(hosted, [Request(state, batch), Request(initial_state(hosted, PRESETS["source"]), images(2, seed=1))])
    assert torch.equal(batch, pixels)
    assert all(torch.equal(state.tensors[name], value) for name, value in before.items())
    assert all(torch.equal(value, weights[name]) for name, value in hosted.network.state_dict().items())


@every_recipe
def test_a_state_keeps_its_structure(hosted, recipe):
    first = initial_state(hosted, recipe)
    last, _ = run(hosted, recipe, [images(2), images(5, seed=1)])
    assert {name: (value.shape, value.dtype) for name, value in first.tensors.items()} == {
        name: (value.shape, value.dtype) for name, value in last.tensors.items()
    }


@every_recipe
def test_a_step_after_encode_and_decode_equals_a_step_without(hosted, recipe):
    state, _ = run(hosted, recipe, [images(3)])
    again = admit(decode(encode(state)), hosted, recipe)
    (one,), (other,) = (step(hosted, [Request(each, images(2, seed=5))]) for each in (state, again))
    assert torch.equal(one.logits, other.logits)
    assert same(one.state, other.state)


@every_recipe
def test_a_reset_stream_is_a_new_stream(hosted, recipe):
    _, before = run(hosted, recipe, [images(3)])
    run(hosted, recipe, [images(4, seed=9)] * 3)
    _, after = run(hosted, recipe, [images(3)])
    assert torch.equal(before[0], after[0])


@every_recipe
def test_the_same_input_gives_the_same_output(hosted, recipe):
    batches = [images(3), images(1, seed=1)]
    (one, first), (other, second) = run(hosted, recipe, batches), run(hosted, recipe, batches)
    assert same(one, other)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_recipe
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_poison_stays_in_its_own_stream(hosted, recipe, poison):
    clean = Request(initial_state(hosted, recipe), images(2))
    poisoned = Request(initial_state(hosted, recipe), torch.full((2, *SIZE), poison))
    (alone,) = step(hosted, [clean])
    for others in ([poisoned, clean], [clean, poisoned]):
        result = step(hosted, others)[others.index(clean)]
        close(result.logits, alone.logits)
        for name, value in alone.state.tensors.items():
            close(result.state.tensors[name], value)


@every_recipe
@pytest.mark.parametrize(
    ("content", "count"), [*(("noise", count) for count in SIZES), *product(["identical", "grey"], [1, 7])]
)
def test_every_batch_size_gives_finite_answers(hosted, recipe, content, count):
    batch = {
        "noise": images(count),
        "identical": images(1).repeat(count, 1, 1, 1),
        "grey": torch.zeros(count, *SIZE),
    }[content]
    state, logits = run(hosted, recipe, [batch, batch])
    assert all(each.isfinite().all() for each in logits)
    assert all(value.isfinite().all() for value in state.tensors.values())


@every_recipe
def test_train_and_eval_change_nothing(hosted, recipe):
    _, before = run(hosted, recipe, [images(2)])
    hosted.network.train()
    _, after = run(hosted, recipe, [images(2)])
    assert torch.equal(before[0], after[0])


@every_recipe
def test_memory_of_one_stream_does_not_hold_that_of_others(hosted, recipe):
    results = step(hosted, [Request(initial_state(hosted, recipe), images(1, seed=i)) for i in range(3)])
    for result in results:
        assert all(value.untyped_storage().nbytes() == value.nbytes for value in result.state.tensors.values())


@pytest.mark.parametrize("name", ["source", "ema"])
def test_splitting_requests_changes_only_what_the_method_says(small, name):
    """`source` looks at no batch; `ema` weighs images, not requests, so its memory is nearly the same."""
    together, one = run(small, PRESETS[name], [images(6)])
    apart, six = run(small, PRESETS[name], list(images(6).split(1)))
    if name == "source":
        close(torch.cat(six), one[0])
    for key, value in together.tensors.items():
        torch.testing.assert_close(apart.tensors[key], value, rtol=0.02, atol=0.02)


def test_one_recipe_is_refused_with_the_field_the_value_and_the_range():
    for value, words in [
        ({"norm": {"name": "alpha_bn", "alpha": 1.5}}, ["alpha", "1.5", "less than or equal to 1"]),
        ({"norm": {"name": "ema", "momentum": 0}}, ["momentum", "0", "greater than 0"]),
        ({"norm": {"name": "n_prior", "prior_images": -3}}, ["prior_images", "-3", "greater than 0"]),
        ({"norm": {"name": "alpha_bn", "alpha": float("nan")}}, ["alpha", "nan", "finite"]),
        ({"norm": {"name": "alpha_bn", "beta": 1}}, ["beta", "not permitted"]),
        ({"norm": {"name": "beta_bn"}}, ["beta_bn", "alpha_bn", "source"]),
        ({"nrom": {"name": "source"}}, ["nrom", "not permitted"]),
        ("alpha-bn", ["alpha-bn", "alpha_bn", "source"]),
        ("{", ["JSON"]),
        (7, ["7"]),
        (None, ["None"]),
    ]:
        with pytest.raises(ValueError, match=r".") as caught:
            Recipe.parse(value)
        assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_recipe_is_a_value():
    assert Recipe.parse("ema") == Recipe.parse({"norm": {"name": "ema"}}) == Recipe.parse(PRESETS["ema"].canonical())
    assert len({Recipe.parse("ema"), Recipe.parse({"norm": {"name": "ema"}}), PRESETS["bn1"]}) == 2
    assert Recipe.parse({}) == PRESETS["source"]
