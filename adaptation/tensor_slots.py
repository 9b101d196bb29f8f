"""Tensors by name, and the slots that their names are in: `norm.mean` is `mean` in the slot `norm`."""

from .member import Tensors


def slot(tensors: Tensors, name: str) -> Tensors:
    """The tensors under a name, under the names they have there."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def in_slot(tensors: Tensors, name: str) -> Tensors:
    """The inverse of `slot`."""
    return {f"{name}.{key}": value for key, value in tensors.items()}
