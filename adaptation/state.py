"""A stream's state: data, without behaviour."""

from dataclasses import dataclass, field

from .hosting import HostedModel
from .member import Tensors
from .recipe import Recipe


@dataclass(frozen=True, slots=True, eq=False)
class StreamState:
    """Everything a stream remembers. Methods are functions of it, and replace it rather than change it.

    Per-channel tensors hold all layers side by side on their last axis, in the order of the model's layers.
    """

    model: str  # name, for people
    fingerprint: str  # of the model's weights and preprocessing
    recipe: Recipe
    step: int = 0  # adaptation steps since the source
    tensors: Tensors = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of the tensors."""
        return sum(value.nbytes for value in self.tensors.values())


def initial_state(hosted: HostedModel, recipe: Recipe) -> StreamState:
    """The state of a stream that has seen nothing.

    Raises:
        HostingError: when the model cannot follow the recipe, with the reason.
    """
    hosted.require(recipe.norm)
    tensors = recipe.norm.initial(hosted.source) if recipe.norm.adapts else {}
    return StreamState(hosted.name, hosted.fingerprint, recipe, tensors=in_slot(tensors, "norm"))


def slot(tensors: Tensors, name: str) -> Tensors:
    """The tensors of one slot of the recipe, under the names its member gave them."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def in_slot(tensors: Tensors, name: str) -> Tensors:
    """The inverse of `slot`."""
    return {f"{name}.{key}": value for key, value in tensors.items()}
