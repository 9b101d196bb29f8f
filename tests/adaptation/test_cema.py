"""CEMA: what the teacher and the student learn by."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_net import host_small, images
from torch.nn.functional import cross_entropy

from normstream.adaptation import PRESETS, HostedModel, Recipe
from normstream.adaptation.learner import Learner, finished
from normstream.adaptation.losses import entropy
from normstream.adaptation.norm.alpha_bn import AlphaBN
from normstream.adaptation.norm.bn1 import BN1
from normstream.adaptation.norm.source import Source
from normstream.adaptation.norm.tbr import TBR
from normstream.adaptation.taught_member import Images, Published
from normstream.adaptation.update.cema import Cema, weighted_entropy

GOLDEN = np.load(Path(__file__).parents[1] / "golden/cema_distillation.npz")


@pytest.fixture(scope="module")
def other() -> HostedModel:
    return host_small(seed=3)


def learner(hosted: HostedModel, norm) -> Learner:
    affine = hosted.layers.affine
    state = norm.initial(hosted.planned(norm).source) if norm.adapts else {}
    return Learner(hosted, norm, affine.clone(), torch.zeros_like(affine), state)


def test_the_distillation_is_the_published_one():
    student = torch.tensor(GOLDEN["student_logits"], requires_grad=True)
    values = {name: float(GOLDEN[name]) for name in ("alpha", "beta", "gamma", "temperature")}
    assert Cema().model_dump().items() >= values.items()  # The defaults are the published weights.
    loss = Cema(**values).distillation(student, torch.from_numpy(GOLDEN["teacher_logits"]), float(GOLDEN["e_max"]))
    loss.backward()
    assert loss.item() == pytest.approx(float(GOLDEN["loss"]), rel=1e-6)
    torch.testing.assert_close(student.grad, torch.from_numpy(GOLDEN["grad_student_logits"]), rtol=0, atol=1e-5)
    assert float(GOLDEN["e_max"]) == pytest.approx(Cema().e_max * math.log(100))


def test_temperature_softens_both_and_is_made_good_for():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 5, generator=generator)
    soft = Cema(alpha=0, gamma=0, temperature=2.0).distillation(student, teacher, 1.0)
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    weight = (1.0 - entropy(teacher)).exp()
    assert soft.item() == pytest.approx((3 * 4 * weight * (p * (p / q).log()).sum(1)).mean().item(), rel=1e-5)


def test_a_student_that_agrees_has_nothing_left_but_its_own_entropy():
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    assert Cema(alpha=0, gamma=0).distillation(logits, logits, 1.0).item() == pytest.approx(0, abs=1e-6)
    hard = Cema(alpha=0, beta=0).distillation(logits, logits, 1.0)
    weight = (1.0 - entropy(logits)).exp()
    assert hard.item() == pytest.approx(
        (weight * cross_entropy(logits, logits.argmax(1), reduction="none")).mean().item()
    )


def test_the_weight_of_an_image_takes_no_gradient():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(2), requires_grad=True)
    weight = (0.7 - entropy(logits)).exp().detach()
    (ours,) = torch.autograd.grad(weighted_entropy(logits, 0.7), logits)
    (written_out,) = torch.autograd.grad((weight * entropy(logits)).mean(), logits)
    torch.testing.assert_close(ours, written_out)


def test_the_lesson_is_the_algorithm(small, other):
    """By autograd on the networks themselves, without statistics that move: teacher, targets, student."""
    member = Cema(batch=4, lr=0.1, teacher_lr=0.05, source_pull=0.25)
    new, again = images(4), images(3, seed=1)
    lesson = finished(
        member.lesson(learner(small, Source()), learner(other, Source()), Images([new, again], [new, again]))
    )
    e_max = 0.4 * math.log(5)

    def logits(hosted, affine, batch):
        mine = Learner(hosted, Source(), affine, torch.zeros_like(affine), {})
        return mine._turn(batch).run(affine.unsqueeze(0)).logits

    affine = other.layers.affine.clone().requires_grad_()
    loss = weighted_entropy(logits(other, affine, new), e_max)
    taught = affine.detach() - 0.05 * torch.autograd.grad(loss, affine)[0]
    torch.testing.assert_close(lesson.teacher.affine, taught, rtol=1e-5, atol=1e-7)
    targets = logits(other, taught, torch.cat([new, again]))
    affine = small.layers.affine.clone().requires_grad_()
    distilled = member.distillation(logits(small, affine, torch.cat([new, again])), targets, e_max)
    moved = affine.detach() - 0.1 * torch.autograd.grad(distilled, affine)[0]
    pulled = 0.75 * moved + 0.25 * small.layers.affine
    torch.testing.assert_close(lesson.student.affine, pulled, rtol=1e-4, atol=1e-6)
    assert lesson.teacher_loss == pytest.approx(loss.item(), rel=1e-5)
    assert lesson.student_loss == pytest.approx(distilled.item(), rel=1e-5)
    assert lesson.teacher_entropy == pytest.approx(entropy(targets[:4]).mean().item(), rel=1e-4)


def test_a_lesson_brings_the_student_nearer_to_its_teacher(small, other):
    student, teacher, batch = learner(small, TBR()), learner(other, TBR()), images(16)
    member = Cema(batch=16, alpha=0, lr=0.02, source_pull=0)
    losses = []
    for _ in range(10):
        lesson = finished(member.lesson(student, teacher, Images([batch], [batch])))
        student, teacher = lesson.student, lesson.teacher
        losses.append(lesson.student_loss)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.85 * losses[0]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_two_halves_of_a_batch_move_as_the_whole_does(small, other, momentum):
    """Under way: the velocity is what a gradient that stays the same has led to."""
    batch = images(4)

    def lessons(size, number, student, teacher):
        member = Cema(batch=size, lr=1e-3, teacher_lr=1e-3, momentum=momentum, source_pull=0)
        for _ in range(number):
            lesson = finished(member.lesson(student, teacher, Images([batch], [batch])))
            student, teacher = lesson.student, lesson.teacher
        return student, teacher

    at_rest = learner(small, Source()), learner(other, Source())
    gradients = [each.velocity for each in lessons(4, 1, *at_rest)]
    under_way = [
        replace(each, velocity=gradient / (1 - momentum)) for each, gradient in zip(at_rest, gradients, strict=True)
    ]
    wholes, halves = lessons(4, 1, *under_way), lessons(8, 2, *under_way)
    for before, whole, half in zip(at_rest, wholes, halves, strict=True):
        assert whole.velocity.abs().max() > 0
        torch.testing.assert_close(half.velocity, whole.velocity, rtol=1e-3, atol=1e-3)
        far = (whole.affine - before.affine).abs().max()
        assert far > 1e-5
        assert (half.affine - whole.affine).abs().max() < 0.02 * far


def test_two_halves_of_a_batch_pull_to_the_source_as_the_whole_does(small, other):
    far = small.layers.affine + torch.randn(small.layers.affine.shape, generator=torch.Generator().manual_seed(3))
    student, teacher = replace(learner(small, Source()), affine=far), learner(other, Source())
    ends = []
    for size, lessons in ((4, 1), (8, 2)):
        member, mine = Cema(batch=size, lr=1e-12, source_pull=0.36), student
        for _ in range(lessons):
            mine = finished(member.lesson(mine, teacher, Images([images(4)], [images(4)]))).student
        ends.append(mine.affine)
    torch.testing.assert_close(ends[0], ends[1])
    torch.testing.assert_close(ends[0], 0.64 * far + 0.36 * small.layers.affine)


def answer(mine, *runs):
    return torch.cat(finished(mine.answer(runs)))


def test_replayed_samples_move_no_statistics_and_are_normalised_apart(small, other):
    new, again = images(4), 5 * images(6, seed=1)
    for norm in (TBR(), AlphaBN(alpha=0.5)):
        student = learner(small, norm)
        alone, _ = finished(student.learn([new], lambda logits, _: entropy(logits).mean(), 0.1, 0.0, 1.0))
        beside, _ = finished(
            student.learn([new, again], lambda logits, run: (run == 0) * entropy(logits).mean(), 0.1 * 10 / 4, 0.0, 1.0)
        )
        torch.testing.assert_close(alone.affine, beside.affine, rtol=1e-4, atol=1e-6)
        for name, value in alone.norm.items():
            torch.testing.assert_close(value, beside.norm[name])


def test_the_published_teacher_learns_by_the_batch_and_answers_by_running_statistics(small):
    batch, published, seen = images(8), learner(small, Published()), []

    def keep(logits, _):
        seen.append(logits.detach())
        return entropy(logits).mean()

    moved, _ = finished(published.learn([batch], keep, 1e-9, 0.0, 1.0))
    finished(learner(small, BN1()).learn([batch], keep, 1e-9, 0.0, 1.0))
    torch.testing.assert_close(seen[0], seen[1])
    tbr, _ = finished(learner(small, TBR()).learn([batch], keep, 1e-9, 0.0, 1.0))
    for name, value in moved.norm.items():  # of the first layer, which sees the same
        torch.testing.assert_close(value[:8], tbr.norm[name][:8])
    running = replace(moved, norm_member=TBR())
    torch.testing.assert_close(answer(moved, batch), answer(running, batch))
    assert not torch.allclose(answer(moved, batch), seen[0], atol=1e-2)


def test_a_member_that_remembers_nothing_answers_by_what_it_sees(small):
    batch = images(8)
    together = answer(learner(small, BN1()), batch[:5], batch[5:])
    apart = torch.cat([answer(learner(small, BN1()), run) for run in (batch[:5], batch[5:])])
    torch.testing.assert_close(together, apart)
    assert not torch.allclose(together, answer(learner(small, Source()), batch), atol=1e-2)


def test_the_teachers_norm_is_a_name_or_a_member():
    short = Recipe.parse({"update": {"name": "cema", "teacher_norm": "alpha_bn"}})
    assert short == PRESETS["cema"] == Recipe.parse(short.canonical())
    long = Recipe.parse({"update": {"name": "cema", "teacher_norm": {"name": "alpha_bn", "alpha": 0.3}}})
    assert long.update.teacher_norm == AlphaBN(alpha=0.3)
    with pytest.raises(ValueError, match=r"teacher_norm.*ema.*published.*beta_bn"):
        Recipe.parse({"update": {"name": "cema", "teacher_norm": "beta_bn"}})


def test_only_a_taught_recipe_has_a_teacher():
    assert PRESETS["cema"].teacher == "tf_efficientnet_lite2"
    assert [name for name, recipe in PRESETS.items() if recipe.teacher] == ["cema"]
