"""A hosted network as a function of the tensors that a stream has learnt.

    twin of the network ──batch norms replaced by `Slot`, classifier by nothing──> features ──stream's head──> logits

Learning goes through `torch.func.functional_call` and not through the layers that serve streams: those carry affine
parameters and statistics alone, while here any weight may be the stream's own and gradients go through the statistics
of the whole batch. The hosted network stays as it is; its twin shares its tensors and holds none of its own.
"""

import copy
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..hosting import HostedModel, HostingError
from ..layers import NormLayer
from ..member import Tensors
from ..moments import Moments
from .layer_norms import Layer, LearningNorm, Lesson

Learns = Literal["affine", "head", "all"]
TASK_WEIGHT = "task_weight"


class Features(NamedTuple):
    """What a forward pass that learns gives."""

    values: Tensor  # what the head reads, [B, D]
    buffers: Tensors  # running statistics, moved on
    penalty: Tensor  # the norms' term of the training loss


class LearningNetwork:
    """The body of a hosted network, with a norm of its own and tensors from outside. Not for several threads at once.

    Args:
        hosted: the model; it ends in a linear classifier.
        norm: what takes the place of its batch norms; None leaves them with their trained statistics.
        learns: which parameters are the stream's own, beside the head: none, the norm layers' or all.

    Raises:
        HostingError: when the model's head cannot grow.
    """

    def __init__(self, hosted: HostedModel, norm: LearningNorm | None, learns: Learns) -> None:
        if hosted.classifier is None:
            raise HostingError(
                f"the head of {hosted.name!r} cannot grow: it does not end in a linear layer that gives the logits;"
                " host a network that does"
            )
        self.hosted, self.norm = hosted, norm
        self._scene = _Scene()
        self._affine = learns == "affine"
        self._body = _twin(hosted.network, {})
        classifier = next(path for path, module in hosted.network.named_modules() if module is hosted.classifier)
        self._body.set_submodule(classifier, nn.Identity())
        if norm is not None:
            for layer in hosted.batch_norms:
                self._body.set_submodule(layer.path, Slot(norm, layer, self._scene))
        # Taken now: while a call of another thread runs, the body's own tensors are those of a stream.
        self._parameters = dict(self._body.named_parameters())
        slots = {path: module for path, module in self._body.named_modules() if isinstance(module, Slot)}
        self._buffers = {
            f"{path}.{name}": value for path, slot in slots.items() for name, value in slot.named_buffers()
        }
        affine = {f"{layer.path}.{name}" for layer in hosted.layers for name in ("weight", "bias", TASK_WEIGHT)}
        self.learnt = [
            name
            for name in self._parameters
            if learns == "all" or (learns == "affine" and name in affine) or name.endswith(f".{TASK_WEIGHT}")
        ]
        """Names of the parameters that are a stream's own; task weights are, whatever else is."""

    @property
    def width(self) -> int:
        """Of the features."""
        assert self.hosted.classifier is not None
        return self.hosted.classifier.in_features

    def parameters(self) -> Tensors:
        """What a new stream learns from, by name; task weights have no tasks yet."""
        layout = torch.contiguous_format
        return {name: self._parameters[name].detach().clone(memory_format=layout) for name in self.learnt}

    def buffers(self) -> Tensors:
        """The running statistics that a new stream starts from, by name."""
        return {name: value.clone() for name, value in self._buffers.items()}

    def trained(self) -> bool:
        """Whether the running statistics come from some training, and so are not the neutral 0 and 1."""
        mean, var = self.hosted.batch_norms.source
        return bool((mean != 0).any() or (var != 1).any())

    def learn(self, tensors: Tensors, images: Tensor, lesson: Lesson) -> Features:
        """One forward pass that a gradient goes back through, by `backward` and not `grad`, which would skip inputs.

        Args:
            tensors: parameters and buffers.
            images: preprocessed, [B, C, H, W].
            lesson: what the norms know of the images.
        """
        if self._affine:
            # Torch 2.13's backward of a channels-last group norm crashes where its weight takes a gradient and its
            # input takes none.
            images = images.detach().requires_grad_()
        self._scene.lesson, self._scene.losses = lesson, []
        try:
            values, buffers = self._call(tensors, images)
            losses = torch.stack(self._scene.losses) if self._scene.losses else images.new_zeros(0)
        finally:
            self._scene.lesson, self._scene.losses = None, []
        penalty = images.new_zeros(()) if self.norm is None else self.norm.penalty(losses, lesson)
        return Features(values, buffers, penalty)

    def predict(self, tensors: Tensors, images: Tensor) -> Tensor:
        """Features of images that are only answered, [B, D]."""
        return self._call(tensors, images)[0]

    def _call(self, tensors: Tensors, images: Tensor) -> tuple[Tensor, Tensors]:
        layout = self.hosted.memory_format
        # The state's tensors are contiguous, whether they come from a step or from bytes; the network's own are not.
        given = tensors | {
            name: each.contiguous(memory_format=layout) for name, each in tensors.items() if each.dim() == 4
        }
        values = functional_call(self._body, given, (images.contiguous(memory_format=layout),))
        return values, {name: given[name] for name in given if name.endswith((f".{Slot.MEAN}", f".{Slot.VAR}"))}


class _Scene:
    """What the slots of one network share during a forward pass."""

    lesson: Lesson | None = None  # None where nothing is learnt
    losses: list[Tensor]


class Slot(nn.Module):
    """The place of a batch normalisation, filled by a norm that learns."""

    MEAN, VAR = "run_mean", "run_var"
    run_mean: Tensor
    run_var: Tensor
    task_weight: Tensor

    def __init__(self, norm: LearningNorm, layer: NormLayer, scene: _Scene) -> None:
        super().__init__()
        self.norm, self.scene, self.eps = norm, scene, float(layer.eps)
        self.weight = nn.Parameter(layer.weight, requires_grad=False)
        self.bias = nn.Parameter(layer.bias, requires_grad=False)
        if norm.weighs_tasks:
            self.register_parameter(TASK_WEIGHT, nn.Parameter(layer.weight.new_zeros(0), requires_grad=False))
        self.register_buffer(self.MEAN, layer.source.mean)
        self.register_buffer(self.VAR, layer.source.var)
        self.tail = nn.Sequential(*layer.tail)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; running statistics that moved replace the buffers, which `functional_call` hands back."""
        task_weight = self.task_weight if self.norm.weighs_tasks else self.weight[:0]
        layer = Layer(self.weight, self.bias, Moments(self.run_mean, self.run_var), task_weight, self.eps)
        if self.scene.lesson is None:
            y = self.norm.predict(x, layer)
        else:
            y, (self.run_mean, self.run_var), loss = self.norm.learn(x, layer, self.scene.lesson)
            self.scene.losses.append(loss)
        tail: Tensor = self.tail(y)
        return tail


def _twin(module: nn.Module, known: dict[nn.Module, nn.Module]) -> nn.Module:
    """A module of the same tensors whose submodules can be replaced, without the forwards that serving put there."""
    if module not in known:
        twin = known[module] = copy.copy(module)
        twin.__dict__.pop("forward", None)
        twin._forward_pre_hooks = type(module._forward_pre_hooks)()
        for name in ("_parameters", "_buffers"):
            setattr(twin, name, dict(getattr(module, name)))
        children = module._modules.items()
        twin._modules = {name: None if child is None else _twin(child, known) for name, child in children}
    return known[module]
