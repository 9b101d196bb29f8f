"""The losses of ER-ACE and DER++, and the norms that AdaB²N is compared with."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from normstream.adaptation.continual.answers import Answers, Replayed
from normstream.adaptation.continual.batch_norm import BatchNorm
from normstream.adaptation.continual.classes import Classes
from normstream.adaptation.continual.continual_norm import ContinualNorm
from normstream.adaptation.continual.der import DerPlusPlus
from normstream.adaptation.continual.er_ace import ErAce
from normstream.adaptation.continual.group_norm import GroupNorm
from normstream.adaptation.continual.layer_norms import Layer, Lesson
from normstream.adaptation.moments import Moments

LESSON = Lesson(torch.zeros(6, dtype=torch.long), 1, 0)


def answers(labels, classes=4, seed=0):
    logits = torch.randn(len(labels), classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Answers(logits.requires_grad_(), torch.tensor(labels))


def replayed(labels, classes=4, outputs=None, seed=1):
    logits, labels = answers(labels, classes, seed)
    stored = torch.randn(logits.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    outputs = torch.tensor(outputs or [classes] * len(labels))
    had = torch.arange(classes) < outputs.unsqueeze(1)
    return Replayed(logits, labels, torch.where(had, stored, 0.0), outputs)


def test_er_ace_pushes_only_the_classes_present():
    new = answers([2, 3, 2])
    (gradient,) = torch.autograd.grad(ErAce().loss(new, [replayed([0, 1])]), new.logits)
    assert (gradient[:, :2] == 0).all()
    assert (gradient[:, 2:] != 0).all()


def test_er_ace_is_two_cross_entropies():
    new, old = answers([2, 3, 2]), replayed([0, 3])
    expected = cross_entropy(new.logits[:, 2:], new.labels - 2) + cross_entropy(old.logits, old.labels)
    torch.testing.assert_close(ErAce().loss(new, [old]), expected)
    assert ErAce().replays(tasks=1) == 0
    assert ErAce().replays(tasks=2) == 1


def test_er_ace_without_replay_is_cross_entropy_over_all():
    new = answers([2, 3, 2])
    torch.testing.assert_close(ErAce().loss(new, []), cross_entropy(new.logits, new.labels))


def test_derpp_by_its_formula():
    new, first, second = answers([2, 3]), replayed([0, 1, 2]), replayed([1, 1], seed=2)
    expected = (
        cross_entropy(new.logits, new.labels)
        + 0.3 * (first.logits - first.stored).square().mean()
        + 0.7 * cross_entropy(second.logits, second.labels)
    )
    torch.testing.assert_close(DerPlusPlus(alpha=0.3, beta=0.7).loss(new, [first, second]), expected)


def test_derpp_leaves_out_outputs_that_came_later():
    first, second = replayed([0, 1], outputs=[2, 4]), replayed([1])
    gradient = torch.autograd.grad(DerPlusPlus().loss(answers([2]), [first, second]), first.logits)[0]
    assert (gradient[0, 2:] == 0).all()
    assert (gradient[0, :2] != 0).all()
    assert (gradient[1] != 0).all()


def test_derpp_with_narrow_logits_in_the_memory():
    # The memory's rows are as wide as its widest; the head has grown since.
    logits, labels = answers([0, 1])
    narrow = Replayed(logits, labels, torch.zeros(2, 2, dtype=logits.dtype), torch.tensor([2, 2]))
    expected = cross_entropy(logits, labels) + logits[:, :2].square().mean()
    loss = DerPlusPlus(alpha=1, beta=0).loss(Answers(logits, labels), [narrow, narrow])
    torch.testing.assert_close(loss, expected)


def test_derpp_without_stored_logits_is_two_cross_entropies():
    new, old = answers([2, 3]), replayed([0, 1])
    expected = cross_entropy(new.logits, new.labels) + 0.5 * cross_entropy(old.logits, old.labels)
    for width in (0, 4):
        none = old._replace(stored=old.stored[:, :width], outputs=torch.zeros(2, dtype=torch.long))
        loss = DerPlusPlus().loss(new, [none, old])
        torch.testing.assert_close(loss, expected)
        assert all(each.isfinite().all() for each in torch.autograd.grad(loss, (new.logits, old.logits)))


def some_layer(channels=4):
    generator = torch.Generator().manual_seed(0)
    weight, bias, mean, var = torch.rand(4, channels, generator=generator) + 0.5
    return Layer(weight, bias, Moments(mean, var), weight[:0], 1e-5)


def torchs(module, layer):
    """The same layer as torch has it."""
    values = {"weight": layer.weight, "bias": layer.bias, "running_mean": layer.running.mean}
    values["running_var"] = layer.running.var
    module.load_state_dict({name: values[name] for name in module.state_dict() if name in values}, strict=False)
    return module


@pytest.mark.parametrize("shape", [(6, 4, 5, 5), (6, 4)])
def test_bn_is_torchs(shape):
    layer, x = some_layer(), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    module = torchs(nn.BatchNorm2d(4) if len(shape) == 4 else nn.BatchNorm1d(4), layer)
    learnt = BatchNorm().learn(x, layer, LESSON)
    torch.testing.assert_close(learnt.y, module(x))
    torch.testing.assert_close(learnt.running, Moments(module.running_mean, module.running_var))
    assert torch.equal(layer.running.mean, some_layer().running.mean)
    answered = BatchNorm().predict(x, layer._replace(running=learnt.running))
    torch.testing.assert_close(answered, module.eval()(x))


def test_gn_is_torchs():
    layer, x = some_layer(), torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    learnt = GroupNorm(groups=2).learn(x, layer, LESSON)
    torch.testing.assert_close(learnt.y, torchs(nn.GroupNorm(2, 4), layer)(x))
    torch.testing.assert_close(learnt.y, GroupNorm(groups=2).predict(x, layer))
    assert learnt.running is layer.running


def test_cn_is_group_then_batch_normalisation():
    layer, x = some_layer(), torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    inner, outer = nn.GroupNorm(2, 4, affine=False), torchs(nn.BatchNorm2d(4), layer)
    learnt = ContinualNorm(groups=2).learn(x, layer, LESSON)
    torch.testing.assert_close(learnt.y, outer(inner(x)))
    torch.testing.assert_close(learnt.running.mean, outer.running_mean)
    answered = ContinualNorm(groups=2).predict(x, layer._replace(running=learnt.running))
    torch.testing.assert_close(answered, outer.eval()(inner(x)))


def test_names_are_kept_whatever_they_are():
    classes = Classes(("", "a\n", "日本", '"'), 1)
    assert Classes.unpacked(classes.packed()) == classes


@pytest.mark.parametrize("text", [b"{}", b"[1]", b'["a", "a"]', b"[", b"\xff", b"[" * 100_000, b'["\\ud800"]'])
def test_names_that_are_none_are_refused(text):
    tensors = {"names": torch.tensor(list(text), dtype=torch.uint8), "first": torch.tensor(0)}
    with pytest.raises(ValueError, match="different texts"):
        Classes.unpacked(tensors)


def test_more_own_classes_than_names_are_refused():
    with pytest.raises(ValueError, match="3 of 1 classes"):
        Classes.unpacked(Classes(("a",), 1).packed() | {"first": torch.tensor(3)})


@pytest.mark.parametrize(
    ("names", "first", "per_task", "tasks"), [(0, 0, 2, 0), (1, 0, 2, 1), (3, 0, 2, 2), (5, 5, 2, 1), (6, 5, 2, 2)]
)
def test_tasks_are_counted(names, first, per_task, tasks):
    assert Classes(tuple(map(str, range(names))), first).count_tasks(per_task) == tasks
