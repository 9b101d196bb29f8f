"""A hosted model: one frozen network whose normalisation layers are served from outside."""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from .layers import Layers, NormLayer, find_layers
from .member import NormMember, Tensors
from .moments import Batch, Moments
from .packing import pack
from .part import Part
from .preprocessing import Preprocessing
from .probe import probe
from .served import Served

if TYPE_CHECKING:
    from .calibration import Calibration


class HostingError(ValueError):
    """The network cannot be hosted, or a recipe cannot run on it."""


class Forwarded(NamedTuple):
    """What a forward pass gives."""

    logits: Tensor  # [B, classes]
    features: Tensor | None  # what the classifier reads, [B, D]; None where the network ends in no linear layer


class HostedModel:
    """A frozen network, its normalisation layers, and the forward pass that serves them.

    The network belongs to the host from here on: it is put in evaluation mode and in the host's memory format. Its
    weights are never changed, and outside `forward` it behaves as before.

    Args:
        network: a classifier from images [B, C, H, W] to logits [B, classes].
        name: what people call it.
        preprocessing: how it wants its images.
        memory_format: of its convolutions; channels-last is several times as fast on a CPU.

    Raises:
        HostingError: when served layers do not reproduce the network or streams meet, with the difference seen.
    """

    own_network = False
    """Whether the network that answers is another than `network`; only a learnt model's can be."""
    own_layers: Mapping[str, NormLayer] = MappingProxyType({})
    """Layers, by path, that take the place of those that the network was hosted with; a learnt model has some."""

    def __init__(
        self,
        network: nn.Module,
        name: str,
        preprocessing: Preprocessing,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        self.name = name
        self.architecture = getattr(network, "default_cfg", {}).get("architecture", type(network).__name__)
        self.preprocessing = preprocessing
        self.memory_format = memory_format
        self.network = network.eval().requires_grad_(False).to(memory_format=memory_format)  # type: ignore[call-overload] # no overload takes the format alone
        self.fingerprint = fingerprint(network, preprocessing)
        example = _example(preprocessing.input_size, next(network.parameters()))
        usage = probe(network, example.contiguous(memory_format=memory_format))
        layers, self.refused = find_layers(network, usage.reached)
        self.classes = usage.logits.shape[1]
        self._running = threading.local()
        self._overwritable = usage.overwritable
        self._calibration: Calibration | None = None
        self._serve(layers)
        self.classifier = self._find_classifier(example, usage.logits)
        self._check(example, usage.logits)
        if memory_format == torch.channels_last:
            pack(network, example[:1])

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        parameter: Tensor = next(self.network.parameters())
        return parameter.device

    @property
    def calibration(self) -> "Calibration | None":
        """What members may know of the source data; None until it is measured (`calibrate`) and assigned."""
        return self._calibration

    @calibration.setter
    def calibration(self, calibration: "Calibration | None") -> None:
        if calibration is not None:
            calibration.check(self)
            calibration = calibration.to(self.device)
        self._calibration = calibration
        self._serve(self.layers.calibrated(None if calibration is None else calibration.moments))

    def part(self, member: NormMember, sizes: tuple[int, ...], norm: Tensors, affine: Tensor | None = None) -> Part:
        """Consecutive samples of S streams, for a forward pass.

        Args:
            member: of their norm slot.
            sizes: S numbers: how many samples are each stream's.
            norm: their states of the member, each [S, ..., C_total of the layers that it plans].
            affine: their own weights and biases of all layers side by side, [S, 2, C_total].
        """
        rows = None if affine is None else self.layers.rows(affine)
        return Part(member, sizes, self.planned(member).apart(norm), rows, self.own_layers)

    def planned(self, member: NormMember) -> Layers:
        """The layers whose statistics a member chooses."""
        if not member.adapts:
            return Layers()
        return self.sample_norms if member.batch_agnostic else self.batch_norms

    def forward(self, images: Tensor, parts: Sequence[Part]) -> Forwarded:
        """One forward pass for many streams, answered.

        Args:
            images: preprocessed, [B, C, H, W].
            parts: who the samples belong to, in order; their states move on.
        """
        return self.answered(self.run(images, parts))

    def answered(self, passed: Forwarded) -> Forwarded:
        """What the network's pass gives, or some of its samples', with this model's answers."""
        return passed

    def run(self, images: Tensor, parts: Sequence[Part]) -> Forwarded:
        """The network's pass alone; parts may be of any model of this network."""
        if self.network.training:
            self.network.eval()
        running = self._running
        # Where nothing adapts every layer is left alone, and the answer is the network's own to the last bit.
        running.parts = parts if any(part.adapts for part in parts) else None
        running.features = None
        try:
            logits = self.network(images.contiguous(memory_format=self.memory_format))
            return Forwarded(logits, running.features)
        finally:
            running.parts = running.features = None

    def _take(self, layers: Layers) -> None:
        self.layers = layers
        self.batch_norms = Layers(layer for layer in layers if layer.normalise is None)
        self.sample_norms = Layers(layer for layer in layers if layer.normalise is not None)

    def _serve(self, layers: Layers) -> None:
        self._take(layers)
        modules = dict(self.network.named_modules())
        for layer in layers:
            served = Served(layer, self._running, overwrite=layer.path in self._overwritable)
            modules[layer.path].forward = served

    def _find_classifier(self, example: Tensor, expected: Tensor) -> nn.Linear | None:
        """The network's last layer, when it is linear and gives the logits as they are."""
        named = getattr(self.network, "get_classifier", None)
        module = named() if named else _last_linear(self.network)
        if not isinstance(module, nn.Linear):
            return None

        def keep(_: nn.Module, inputs: tuple[Tensor]) -> None:
            self._running.features = inputs[0]

        handle = module.register_forward_pre_hook(keep)
        with torch.inference_mode():
            part = self.part(_SourcePlan(name="source"), (len(example),), {})
            features = self.forward(example, [part]).features
            if features is not None and features.dim() == 2 and torch.allclose(module(features), expected, atol=1e-4):
                return module
        handle.remove()
        return None

    def _check(self, example: Tensor, expected: Tensor) -> None:
        """Two promises, tried on two images: served layers are the network's own, and streams in a batch are apart."""
        served = self._try(example, _SourcePlan(name="source"), (2,))
        _demand_equal(served, expected, "serving its normalisation layers changes the network's answers")
        together = self._try(example, _BatchPlan(name="batch"), (1, 1))
        apart = torch.cat([self._try(image, _BatchPlan(name="batch"), (1,)) for image in example.split(1)])
        _demand_equal(together, apart, f"images of one batch meet in the network {self.refused or ''}".rstrip())

    def _try(self, images: Tensor, member: NormMember, sizes: tuple[int, ...]) -> Tensor:
        part = self.part(member, sizes, {}, self.layers.affine.expand(len(sizes), 2, -1))
        with torch.inference_mode():
            return self.forward(images, [part]).logits


class _SourcePlan(NormMember):
    """The source's statistics by way of moments, plan and apply."""

    def plan(self, source: Moments, batch: Batch, state: Tensors) -> tuple[Moments, Tensors]:
        del batch
        return source, state


class _BatchPlan(NormMember):
    """Half the source, half the batch: any image that reaches another stream shows."""

    def plan(self, source: Moments, batch: Batch, state: Tensors) -> tuple[Moments, Tensors]:
        return source.mix(batch.moments, 0.5), state


def _demand_equal(seen: Tensor, expected: Tensor, complaint: str) -> None:
    error = (seen - expected).abs().max().item()
    if not error <= 1e-3 * max(1.0, expected.abs().max().item()):
        raise HostingError(f"{complaint} (by {error:.2g}); it cannot be hosted")


def _last_linear(network: nn.Module) -> nn.Module | None:
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


def fingerprint(network: nn.Module, preprocessing: Preprocessing) -> str:
    """One text for one model: its class, every weight and buffer, and its preprocessing."""
    digest = hashlib.sha256(f"{type(network).__qualname__}:{preprocessing.digest}".encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def _example(input_size: tuple[int, int, int], like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *input_size, generator=generator).to(like)
