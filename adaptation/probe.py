"""One small forward pass that finds out how a network uses its normalisation layers.

Two questions: how often is each layer run, and may a layer write its output over its input? It may when nothing else
reads that memory afterwards. A plain convolutional net allows it everywhere; pre-activation nets, whose shortcut reads
the layer's input too, allow it at some layers only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .layers import BATCH_NORMS, SAMPLE_NORMS


@dataclass(frozen=True, slots=True)
class Usage:
    """What the probe saw."""

    reached: list[str]  # paths of the normalisation layers, in the order they ran, once for each time
    overwritable: frozenset[str]  # paths of the layers whose input nothing else reads afterwards
    logits: Tensor


def probe(model: nn.Module, images: Tensor) -> Usage:
    """Run `model` once on `images` [B, 3, H, W] and watch."""
    watch = _Watch(kept=[images, *model.parameters(), *model.buffers()])
    with torch.no_grad(), _hooks(model, watch), watch:
        logits = model(images)
    watch.forbid(logits)
    allowed = frozenset(watch.reached) - {path for key in watch.forbidden for path in watch.inputs.get(key, ())}
    return Usage(watch.reached, allowed, logits)


@dataclass(eq=False)
class _Watch(TorchDispatchMode):
    """Notes every read, outside a layer, of memory that some layer took as its input."""

    kept: list[Tensor]  # alive to the end, so that no address is used twice
    reached: list[str] = field(default_factory=list)
    inputs: dict[int, list[str]] = field(default_factory=dict)
    forbidden: set[int] = field(default_factory=set)
    inside: bool = False

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's
        self.forbidden = {_memory(tensor) for tensor in self.kept}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not self.inside:
            self.forbid(args, kwargs)
        result = func(*args, **(kwargs or {}))
        self.kept.extend(_tensors(result))
        return result

    def forbid(self, *values: Any) -> None:
        self.forbidden |= {_memory(tensor) for tensor in _tensors(values)} & self.inputs.keys()

    def enter(self, path: str, x: Tensor) -> None:
        self.forbid(x)  # Two layers that read one tensor may neither write to it.
        self.inside = True
        self.reached.append(path)
        self.inputs.setdefault(_memory(x), []).append(path)
        if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
            self.forbidden.add(_memory(x))


@contextmanager
def _hooks(model: nn.Module, watch: _Watch) -> Iterator[None]:
    def leave(*_: Any) -> None:
        watch.inside = False

    handles = []
    for path, module in model.named_modules():
        if isinstance(module, (*BATCH_NORMS, *SAMPLE_NORMS)):
            handles.append(module.register_forward_pre_hook(lambda _, args, path=path: watch.enter(path, args[0])))
            handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
