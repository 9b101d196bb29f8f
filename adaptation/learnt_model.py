"""A hosted model as a stream has learnt it: the same network, with norm layers and a head of the stream's own."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .calibration import Calibration
from .continual.growth import HEAD_BIAS, HEAD_WEIGHT
from .continual.hosted_form import learnt_layers
from .continual.learner import Learner
from .continual.learning import Learning
from .hosting import Forwarded, HostedModel
from .learnt import Learnt
from .part import Part
from .tensor_slots import slot


class NoClassYet(ValueError):  # noqa: N818 (it is what is the matter)
    """A stream that began without classes has not been told of one."""


class LearntModel(HostedModel):
    """A light view of a hosted model. What adapts at test time takes it for the model, and needs not know of learning.

    Its layers start from the weights and statistics that were learnt, which are its source; its classes are those that
    were named. A stream that learnt more than norm layers and head has a network of its own, in which nothing adapts.

    Args:
        hosted: the model.
        learnt: of a stream of the model.

    Raises:
        NoClassYet: when there is no class to tell.
    """

    classifier: nn.Linear

    def __init__(self, hosted: HostedModel, learnt: Learnt) -> None:
        if not learnt.names:
            raise NoClassYet("no class is known yet: learn from labelled images first")
        vars(self).update(vars(hosted))  # All but what follows is the model's own.
        self.hosted_layers = hosted.layers
        tensors = learnt.tensors
        self.classes = len(learnt.names)
        self.classifier = _linear(tensors[HEAD_WEIGHT], tensors[HEAD_BIAS])
        self._calibration = _grown(hosted.calibration, int(tensors["classes.first"]), self.classes)
        self.own_network = learnt.learning.own_network
        if self.own_network:
            self._learner, self._network = learner_of(hosted, learnt.learning), slot(tensors, "network")
        else:
            self._take(learnt_layers(hosted, learnt.learning, tensors))
            self.own_layers = {} if self.layers is hosted.layers else {layer.path: layer for layer in self.layers}

    def run(self, images: Tensor, parts: Sequence[Part]) -> Forwarded:
        """The network's pass; in a network of the stream's own no part has a say."""
        if not self.own_network:
            return super().run(images, parts)
        features = self._learner.network.predict(self._network, images)
        return Forwarded(self.classifier(features), features)

    def answered(self, passed: Forwarded) -> Forwarded:
        """By the stream's own head, which reads what the network's does."""
        assert passed.features is not None
        return Forwarded(self.classifier(passed.features), passed.features)


_MODELS: WeakKeyDictionary[Learnt, LearntModel] = WeakKeyDictionary()


def learnt_model(hosted: HostedModel, learnt: Learnt) -> LearntModel:
    """The model as a stream has learnt it, made once for as long as `learnt` and the model's calibration are there.

    Raises:
        NoClassYet: when there is no class to tell.
        ValueError: when it was learnt on another model.
    """
    if learnt.fingerprint != hosted.fingerprint:
        raise ValueError(
            f"what was learnt is of model {learnt.fingerprint}, not of {hosted.name!r} ({hosted.fingerprint})"
        )
    model = _MODELS.get(learnt)
    if model is None or model.hosted_layers is not hosted.layers:  # Which a calibration replaces.
        model = _MODELS[learnt] = LearntModel(hosted, learnt)
    return model


@lru_cache(maxsize=32)
def learner_of(hosted: HostedModel, learning: Learning) -> Learner:
    """The learner of a model and a recipe.

    Raises:
        HostingError: when the model's head cannot grow.
    """
    return Learner(hosted, learning)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    head = nn.Linear(weight.shape[1], len(weight), device="meta")
    head.weight, head.bias = (nn.Parameter(each, requires_grad=False) for each in (weight, bias))
    return head


def _grown(calibration: Calibration | None, first: int, classes: int) -> Calibration | None:
    """With rows for the classes that the source lacks: as for those never predicted there, the mean of all."""
    if calibration is None:
        return None
    mean = calibration.feature_mean.expand(classes - first, -1)
    return replace(calibration, class_features=torch.cat([calibration.class_features[:first], mean]))
