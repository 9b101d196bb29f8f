"""A hosted model: one frozen network whose normalisation layers are served from outside.

Every method that adapts statistics is three steps at every layer: **moments** of the activations, a **plan** that turns
them into statistics (the method; tiny tensors), and one pass over the activations to **apply** them. Only the plan
differs, so the other two are written here once. Each stream of a batch is planned from its own samples and its own
state, and so one forward pass carries many streams.
"""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .layers import NormLayer, find_layers
from .member import NormMember, Tensors
from .moments import Batch, Moments, moments_of, moments_of_runs, pool, side_by_side
from .preprocessing import Preprocessing
from .probe import probe


class HostingError(ValueError):
    """The network cannot be hosted, or a recipe cannot run on it."""


@dataclass(slots=True)
class Part:
    """Consecutive samples of a batch whose streams follow one member."""

    member: NormMember
    sizes: tuple[int, ...]  # images of each stream
    layer_states: dict[str, Tensors]  # each [S, ..., C] by the layer's path; replaced as the layers run
    images: int = field(init=False)
    seen: dict[str, Moments] = field(init=False, default_factory=dict)  # the batch's moments by the layer's path

    def __post_init__(self) -> None:
        self.images = sum(self.sizes)

    def statistics(self, layer: NormLayer, x: Tensor) -> Moments:
        """What this part's samples normalise by at `layer`, [C] or [1, S or B, C]; moves their streams' state on."""
        if not self.member.adapts:
            return layer.source
        # An image is one row of x, but several where a net folds tokens into the batch.
        rows = x.shape[0] // self.images
        if self.member.per_sample:
            moments = moments_of_runs(x, [rows] * self.images)
            self.seen[layer.path] = pool(moments, self.sizes)
        elif len(self.sizes) == 1:
            moments = self.seen[layer.path] = moments_of(x)
        else:
            moments = self.seen[layer.path] = moments_of_runs(x, [size * rows for size in self.sizes])
        batch = Batch(moments, self.sizes, positions=x.numel() // (self.images * x.shape[1]))
        chosen, self.layer_states[layer.path] = self.member.plan(layer.source, batch, self.layer_states[layer.path])
        return chosen


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
        self.network = network.eval().requires_grad_(False).to(memory_format=memory_format)  # type: ignore[call-overload]
        self.fingerprint = fingerprint(network, preprocessing)
        example = _example(preprocessing.input_size, next(network.parameters()))
        usage = probe(network, example.contiguous(memory_format=memory_format))
        layers, self.refused = find_layers(network, usage.reached)
        self.layers = tuple(layers)
        self.source = side_by_side([layer.source for layer in layers])  # [C_total]
        self.channels = [layer.channels for layer in layers]
        self.layer_of = torch.arange(len(layers)).repeat_interleave(torch.tensor(self.channels, dtype=torch.long))
        self.layer_of = self.layer_of.to(self.device)  # [C_total]
        self.eps = torch.cat([layer.eps.expand(layer.channels) for layer in layers] or [torch.empty(0)])  # [C_total]
        self.classes = usage.logits.shape[1]
        self._running = threading.local()
        self._serve_layers(usage.overwritable)
        self._check(example, usage.logits)

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        parameter: Tensor = next(self.network.parameters())
        return parameter.device

    def require(self, member: NormMember) -> None:
        """Refuse a member that this network has no layers for.

        Raises:
            HostingError: with the reason.
        """
        if member.adapts and not self.layers:
            reasons = "; ".join(f"{path}: {reason}" for path, reason in self.refused.items())
            raise HostingError(
                f"{member.name!r} adapts batch normalisation, and this model has no such layer that can be served"
                f" ({reasons or 'it has no batch normalisation at all'}); use the recipe 'source'"
            )

    def apart(self, state: Tensors) -> dict[str, Tensors]:
        """A state with all layers side by side, [..., C_total], as one for each layer, [..., C], by its path."""
        pieces = {name: value.split(self.channels, dim=-1) for name, value in state.items()}
        return {
            layer.path: {name: piece[index] for name, piece in pieces.items()}
            for index, layer in enumerate(self.layers)
        }

    def together(self, layer_states: dict[str, Tensors]) -> Tensors:
        """The inverse of `apart`."""
        states = [layer_states[layer.path] for layer in self.layers]
        names = states[0] if states else ()
        return {name: torch.cat([state[name] for state in states], dim=-1) for name in names}

    def forward(self, images: Tensor, parts: Sequence[Part]) -> Tensor:
        """One forward pass for many streams.

        Args:
            images: preprocessed, [B, C, H, W].
            parts: who the samples belong to, in order; their states move on.

        Returns:
            Logits, [B, classes].
        """
        if self.network.training:
            self.network.eval()
        # Where nothing adapts every layer is left alone, and the answer is the network's own to the last bit.
        self._running.parts = parts if any(part.member.adapts for part in parts) else None
        try:
            return self.network(images.contiguous(memory_format=self.memory_format))  # type: ignore[no-any-return]
        finally:
            self._running.parts = None

    def _serve_layers(self, overwritable: frozenset[str]) -> None:
        modules = dict(self.network.named_modules())
        for layer in self.layers:
            served = _Served(layer, self._running, overwrite=layer.path in overwritable)
            modules[layer.path].forward = served

    def _check(self, example: Tensor, expected: Tensor) -> None:
        """Two promises, tried on two images: served layers are the network's own, and streams in a batch are apart."""
        served = self._try(example, _SourcePlan(name="source"), (2,))
        _demand_equal(served, expected, "serving its normalisation layers changes the network's answers")
        together = self._try(example, _BatchPlan(name="batch"), (1, 1))
        apart = torch.cat([self._try(image, _BatchPlan(name="batch"), (1,)) for image in example.split(1)])
        _demand_equal(together, apart, f"images of one batch meet in the network {self.refused or ''}".rstrip())

    def _try(self, images: Tensor, member: NormMember, sizes: tuple[int, ...]) -> Tensor:
        with torch.inference_mode():
            return self.forward(images, [Part(member, sizes, self.apart({}))])


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


@dataclass(frozen=True, slots=True)
class _Served:
    """Takes the place of a layer's `forward`."""

    layer: NormLayer
    running: threading.local
    overwrite: bool

    def __call__(self, x: Tensor) -> Tensor:
        parts: Sequence[Part] | None = getattr(self.running, "parts", None)
        if parts is None:
            return self.layer.forward(x)
        statistics = _rows(self.layer, x, parts)
        y = apply(x, self.layer, statistics, overwrite=self.overwrite and not torch.is_grad_enabled())
        for module in self.layer.tail:
            y = module(y)
        return y


def _rows(layer: NormLayer, x: Tensor, parts: Sequence[Part]) -> Moments:
    """Statistics for the rows of the activations: one row for all, or a row for each."""
    rows = x.shape[0] // sum(part.images for part in parts)
    if len(parts) == 1:
        chosen = [parts[0].statistics(layer, x)]
        if chosen[0].mean.dim() == 1 or chosen[0].mean.shape[0] in (1, x.shape[0]):
            return chosen[0]
    else:
        lengths = [part.images * rows for part in parts]
        chosen = [part.statistics(layer, run) for part, run in zip(parts, x.split(lengths), strict=True)]
    repeated = [_repeated(each, part, rows) for each, part in zip(chosen, parts, strict=True)]
    return Moments(torch.cat([each.mean for each in repeated]), torch.cat([each.var for each in repeated]))


def _repeated(chosen: Moments, part: Part, rows: int) -> Moments:
    """A row for all streams of a part, for each stream or for each sample, to one for each row of the activations."""
    chosen = Moments(*(torch.atleast_2d(each) for each in chosen))
    if len(chosen.mean) == part.images:
        repeats = torch.full((part.images,), rows, device=chosen.mean.device)
    else:
        chosen = Moments(*(each.expand(len(part.sizes), -1) for each in chosen))
        repeats = torch.tensor([size * rows for size in part.sizes], device=chosen.mean.device)
    return Moments(*(each.repeat_interleave(repeats, dim=0) for each in chosen))


def apply(x: Tensor, layer: NormLayer, statistics: Moments, *, overwrite: bool) -> Tensor:
    """Normalise and scale in one pass: y = weight * (x - mean) / sqrt(var + eps) + bias.

    Args:
        x: activations, [B, C, ...].
        layer: gives weight, bias and eps.
        statistics: [C] or [1, C], or [B, C] with a row for each sample.
        overwrite: the result may be written over `x`, which saves the memory traffic of a new tensor.
    """
    scale = torch.rsqrt(statistics.var + layer.eps) * layer.weight
    shift = torch.addcmul(layer.bias, statistics.mean, scale, value=-1)
    shape = (*scale.shape, *[1] * (x.dim() - 2))
    return torch.addcmul(shift.view(shape), x, scale.view(shape), out=x if overwrite else None)


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
