"""AdaB²N: parity with the published code, gradients included, and what is ours."""

from pathlib import Path

import numpy as np
import pytest
import torch

from normstream.adaptation.continual.adab2n import AdaB2N, weighed
from normstream.adaptation.continual.layer_norms import Layer, Lesson
from normstream.adaptation.continual.sample_moments import sample_moments
from normstream.adaptation.moments import Moments, moments_of

GOLDEN = Path(__file__).parents[1] / "golden"


def some_layer(channels=5, tasks=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    weight, bias, mean, var = torch.rand(4, channels, generator=generator, dtype=dtype) + 0.5
    return Layer(weight, bias, Moments(mean, var), torch.tensor([0.3, -0.2, 0.1][:tasks], dtype=dtype), 1e-5)


def activations(*shape, seed=0):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1


def lesson(*tasks, known=3, batches=0):
    return Lesson(torch.tensor(tasks), known, batches)


@pytest.mark.parametrize("kappa", ["0.0", "0.4", "1.0"])
def test_parity_with_the_published_code(kappa):
    data = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN / f"adab2n_kappa{kappa}.npz").items()}
    norm = AdaB2N(kappa=float(kappa), momentum=float(data["bn_momentum"]), weights="published")
    known = int(data["current_task"]) + 1
    running = Moments(data["running_mean"], data["running_var"])
    for turn in range(4):
        leaves = [data[name].clone().requires_grad_() for name in ("weight", "bias", "task_weight")]
        weight, bias, task_weight = leaves
        layer = Layer(weight, bias, running, task_weight, float(data["eps"]))
        tasks = data[f"labels_{turn}"] // int(data["num_classes_per_task"])
        y, running, loss = norm.learn(data[f"x_{turn}"], layer, Lesson(tasks, known, turn))
        gradients = torch.autograd.grad(y.square().mean() + loss, leaves)
        seen = (y, *running, loss, *gradients)
        names = (
            f"y_{turn}", f"running_mean_{turn + 1}", f"running_var_{turn + 1}", f"norm_loss_{turn}",
            f"grad_weight_{turn}", f"grad_bias_{turn}", f"grad_task_weight_{turn}",
        )  # fmt: skip
        for name, value in zip(names, seen, strict=True):
            torch.testing.assert_close(value.detach(), data[name], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kappa", [0, 0.1, 0.4, 0.7, 1])
def test_the_closed_form_is_the_recursion(kappa):
    norm = AdaB2N(kappa=kappa, momentum=0.1)
    rate = 0.1**kappa
    for n in range(1, 300):
        assert norm.rate(n) == pytest.approx(rate, rel=1e-9)
        rate = rate / (rate + 0.9**kappa)
    assert AdaB2N(kappa=1).rate(17) == pytest.approx(0.1)
    assert AdaB2N(kappa=0).rate(17) == pytest.approx(1 / 17)
    assert AdaB2N(kappa=0.4).rate(10_000) == pytest.approx(1 - 0.9**0.4)


@pytest.mark.parametrize("kappa", [0, 1e-12, 0.1, 0.4, 1])
@pytest.mark.parametrize("before", [0, 1, 2.5, 40, 10_000])
@pytest.mark.parametrize("parts", [2, 10])
def test_the_parts_of_a_batch_leave_of_the_past_what_the_batch_leaves(kappa, before, parts):
    norm, left = AdaB2N(kappa=kappa), 1.0
    for part in range(1, parts + 1):
        rate = norm.rate(before + part / parts, 1 / parts)
        assert 0 < rate <= 1
        left *= 1 - rate
    assert left == pytest.approx(1 - norm.rate(before + 1), rel=1e-2 if kappa == 1e-12 else 1e-9, abs=1e-9)


def test_weights_sum_to_one_where_a_task_is_missing():
    batch = lesson(1, 1, 2, 2, 2)
    ours, theirs = (AdaB2N(weights=each).shares(some_layer().task_weight, batch) for each in ("present", "published"))
    assert ours.sum().item() == pytest.approx(1)
    assert theirs.sum().item() < 0.9
    # A common factor: which tasks count more among those present is the same.
    torch.testing.assert_close(ours / ours[0], theirs / theirs[0])


def test_both_weights_agree_where_no_task_is_missing():
    batch = lesson(0, 1, 1, 2)
    ours, theirs = (AdaB2N(weights=each).shares(some_layer().task_weight, batch) for each in ("present", "published"))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (6, 5, 7), (6, 5)])
def test_one_task_is_plain_batch_normalisation(shape):
    x, layer = activations(*shape), some_layer(tasks=1)
    learnt = AdaB2N(kappa=1).learn(x, layer, lesson(*[0] * 6, known=1))
    batch = moments_of(x)
    expected = torch.nn.functional.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)
    torch.testing.assert_close(learnt.y, expected)
    torch.testing.assert_close(learnt.running.mean, 0.9 * layer.running.mean + 0.1 * batch.mean)
    torch.testing.assert_close(learnt.running.var, 0.9 * layer.running.var + 0.1 * batch.var)  # biased


def test_equal_shares_are_the_moments_of_the_batch():
    x = activations(7, 5, 3, 3)
    torch.testing.assert_close(weighed(sample_moments(x), torch.full((7,), 1 / 7, dtype=x.dtype)), moments_of(x))


def test_gradients_are_those_of_the_definition():
    layer = some_layer()
    x = activations(5, 5, 2, 2).requires_grad_()
    psi = layer.task_weight.clone().requires_grad_()

    def function(x, psi):
        return AdaB2N().learn(x, layer._replace(task_weight=psi), lesson(0, 0, 1, 2, 2)).y

    assert torch.autograd.gradcheck(function, (x, psi))


def test_the_running_statistics_take_no_gradient():
    x = activations(4, 5, 2, 2).requires_grad_()
    learnt = AdaB2N().learn(x, some_layer(), lesson(0, 0, 1, 2))
    assert not learnt.running.mean.requires_grad
    assert learnt.y.requires_grad
    assert learnt.loss.requires_grad


def test_one_value_per_channel_is_normalised_by_the_running_statistics():
    layer, x = some_layer(), activations(1, 5, 1, 1)
    learnt = AdaB2N().learn(x, layer, lesson(2))
    torch.testing.assert_close(learnt.y, AdaB2N().predict(x, layer))
    assert learnt.running == layer.running
    assert learnt.loss == 0


def test_the_penalty_begins_with_its_task():
    norm, losses = AdaB2N(loss_weight=0.5, loss_from_task=1), torch.tensor([1.0, 3.0])
    assert norm.penalty(losses, lesson(0, known=1)) == 0
    assert norm.penalty(losses, lesson(0, 1, known=2)) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [("kappa", 1.5), ("momentum", 0), ("loss_weight", -1), ("weights", "all"), ("loss_from_task", -1)],
)
def test_bad_values_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        AdaB2N(**{field: value})
