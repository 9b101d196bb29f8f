"""The classes that a stream knows: by name, numbered in the order of their coming."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..member import Tensors


@dataclass(frozen=True, slots=True)
class Classes:
    """Names of the outputs of a head that grows."""

    names: tuple[str, ...]
    first: int  # how many the network was trained on before it came here

    def grown(self, labels: Sequence[str]) -> "Classes":
        """With the labels that are new, in order.

        >>> Classes(("cat",), 1).grown(["dog", "cat", "dog", "eel"]).names
        ('cat', 'dog', 'eel')
        """
        return Classes(tuple(dict.fromkeys((*self.names, *labels))), self.first)

    def indices(self, labels: Sequence[str]) -> Tensor:
        """Index of each label, [B]."""
        index = {name: number for number, name in enumerate(self.names)}
        return torch.tensor([index[label] for label in labels], dtype=torch.long)

    def tasks(self, indices: Tensor, per_task: int) -> Tensor:
        """Task of each class: what the network was trained on is one, then every `per_task` new ones are another.

        >>> Classes(tuple("abcdef"), 3).tasks(torch.arange(6), 2)
        tensor([0, 0, 0, 1, 1, 2])
        """
        new = torch.div(indices - self.first, per_task, rounding_mode="floor") + min(self.first, 1)
        return torch.where(indices < self.first, 0, new)

    def count_tasks(self, per_task: int) -> int:
        """How many tasks the classes make."""
        return int(self.tasks(torch.tensor(len(self.names) - 1), per_task)) + 1 if self.names else 0

    def packed(self) -> Tensors:
        """As tensors."""
        text = json.dumps(self.names).encode()
        names = torch.from_numpy(np.frombuffer(text, np.uint8).copy())
        return {"names": names, "first": torch.tensor(self.first)}

    @classmethod
    def unpacked(cls, tensors: Tensors) -> "Classes":
        """The inverse of `packed`.

        Raises:
            ValueError: when the tensors hold no list of different names.
        """
        try:
            names = json.loads(tensors["names"].cpu().numpy().tobytes())
            json.dumps(names, ensure_ascii=False).encode()  # Half a character, a lone surrogate, can go into no answer.
        except (ValueError, RecursionError):
            names = None
        if not isinstance(names, list) or len({name for name in names if isinstance(name, str)}) != len(names):
            raise ValueError("the names of the classes are no list of different texts")
        first = int(tensors["first"])
        if not 0 <= first <= len(names):
            raise ValueError(f"{first} of {len(names)} classes are said to be the network's own")
        return cls(tuple(names), first)
