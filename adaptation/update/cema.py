"""CEMA: a foundation model in the cloud teaches the model of an edge."""

import math
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from ..learner import Learner, Passes
from ..losses import certainty, entropy
from ..taught_member import Images, Lesson, TaughtMember


class Cema(TaughtMember):
    """Adapt a foundation model to uploaded samples, and distil it into the edge's (Chen et al. 2024, arXiv:2402.17316).

    The edge sends the few samples that are worth it. Of each batch the foundation model, the teacher, takes one step
    of weighted entropy minimisation; then it labels the new samples and some replayed ones, and the edge's model, the
    student, takes one step towards the labels. Only the affine parameters of normalisation layers move, of both.

    Six things are ours. New and replayed samples are normalised apart, and statistics follow the new ones alone: a
    replayed sample has moved them before, and may be of another world. The preset leaves the student its source
    statistics, where the published edge has running ones (`tbr`), which lag behind the world by a batch of uploads. The
    teacher's are by default those of `alpha_bn`; `published` normalises it by the batch while it learns. Samples are
    replayed from the first on, not from the 256th, and only those of some hours and bytes. A batch that is not full
    takes its share of a step. And after each lesson the student goes a part of the way back to its trained parameters,
    since what it has learnt in one world costs it in the next.

    The replay buffer holds images of the stream's owner: it is as private as they are.
    """

    name: Literal["cema"] = "cema"
    lr: float = Field(0.0025, gt=0, le=10, description="learning rate of the student for a whole batch")
    teacher_lr: float = Field(0.00025, gt=0, le=10, description="learning rate of the teacher for a whole batch")
    momentum: float = Field(0.9, ge=0, lt=1, description="of both optimisers")
    alpha: float = Field(3.0, ge=0, le=1000, description="weight of the student's entropy")
    beta: float = Field(3.0, ge=0, le=1000, description="weight of the divergence from the teacher")
    gamma: float = Field(1.0, ge=0, le=1000, description="weight of the cross entropy to the teacher's classes")
    temperature: float = Field(1.0, gt=0, le=100, description="of both models in the divergence")
    e_max: float = Field(0.4, gt=0, le=1, description="entropy of which an image weighs 1; times ln(classes)")
    source_pull: float = Field(
        0.2, ge=0, lt=1, description="weight of the student's trained parameters after a whole batch; 0 is published"
    )

    extra_forwards: ClassVar[str] = "two of the student and two of the teacher on uploaded samples, two with gradient"

    def lesson(self, student: Learner, teacher: Learner, images: Images) -> Passes[Lesson]:
        """The teacher adapts to the new samples; it labels all of them; the student learns the labels."""
        e_max, share = self.e_max * math.log(student.hosted.classes), images.new / self.batch
        teacher, teacher_loss = yield from teacher.learn(
            images.teacher[:1],
            lambda logits, _: weighted_entropy(logits, e_max),
            self.teacher_lr,
            self.momentum,
            share,
        )
        targets = yield from teacher.answer(images.teacher)
        student, student_loss = yield from student.learn(
            images.student,
            lambda logits, run: self.distillation(logits, targets[run], e_max),
            self.lr,
            self.momentum,
            share,
        )
        student = student.pulled_to_source(1 - (1 - self.source_pull) ** share)
        return Lesson(student, teacher, student_loss, teacher_loss, targets[0])

    def distillation(self, student: Tensor, teacher: Tensor, e_max: float) -> Tensor:
        """Alpha mean(w_s H_s) + beta T^2 mean(w_t KL(t || s)) + gamma mean(w_t CE(argmax t, s)), w = exp(E_max - H).

        Args:
            student: logits, [N, classes]; gradients flow to them.
            teacher: logits, [N, classes].
            e_max: entropy of weight 1, in nats.
        """
        entropies = entropy(student)
        weight, sure = certainty(entropies, e_max), certainty(entropy(teacher), e_max)
        soft, target = ((logits / self.temperature).log_softmax(1) for logits in (student, teacher))
        divergence = kl_div(soft, target, reduction="none", log_target=True).sum(1)
        hard = cross_entropy(student, teacher.argmax(1), reduction="none")
        return (
            self.alpha * (weight * entropies).mean()
            + self.beta * self.temperature**2 * (sure * divergence).mean()
            + self.gamma * (sure * hard).mean()
        )


def weighted_entropy(logits: Tensor, e_max: float) -> Tensor:
    """Mean of exp(E_max - H) H; the weight is a constant to the gradient."""
    entropies = entropy(logits)
    return (certainty(entropies, e_max) * entropies).mean()
