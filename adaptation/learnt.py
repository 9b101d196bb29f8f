"""What a stream has learnt from labels: data, as a learner makes and reads it."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from .continual.classes import Classes
from .continual.learning import Learning
from .continual.replay import kept_bytes
from .member import Tensors
from .tensor_slots import slot

_ON_CPU = ("replay.", "classes.", "steps", "batches")  # of no use to the network


@dataclass(frozen=True, eq=False)
class Learnt:
    """What one stream has learnt. It compares and hashes by identity: a lesson makes a new one."""

    fingerprint: str  # of the model
    learning: Learning  # how it was learnt
    tensors: Tensors  # the learner's state

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the classes, in the order of the outputs."""
        return Classes.unpacked(slot(self.tensors, "classes")).names

    @property
    def lessons(self) -> int:
        """Steps of learning so far."""
        return int(self.tensors["steps"])

    @property
    def kept(self) -> int:
        """Samples in the memory."""
        return len(self.tensors["replay.lengths"])

    @property
    def kept_bytes(self) -> int:
        """Size of the samples in the memory, with their logits."""
        return kept_bytes(slot(self.tensors, "replay"))

    @property
    def bytes(self) -> int:
        """Size of the tensors."""
        return sum(value.nbytes for value in self.tensors.values())

    def to(self, device: torch.device) -> "Learnt":
        """The same, its parameters and statistics on a device; itself where they are there."""
        moved = {name: value if name.startswith(_ON_CPU) else value.to(device) for name, value in self.tensors.items()}
        here = all(value is self.tensors[name] for name, value in moved.items())
        return self if here else replace(self, tensors=moved)
