"""What members each slot of a recipe has: those whose files lie in the slot's package."""

import importlib
import pkgutil
from types import ModuleType
from typing import Annotated, Any, TypeVar, Union

from pydantic import Field

from . import norm
from .member import Member, NormMember

M = TypeVar("M", bound=Member)


def members_of(package: ModuleType, base: type[M]) -> dict[str, type[M]]:
    """The members of a slot by name: the one subclass of `base` in each file of its package."""
    found: dict[str, type[M]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__:
                found[info.name] = value
    return found


def one_of(*members: type[Member]) -> Any:
    """The type of a field that takes any of the members; `name` says which."""
    return Annotated[Union[members], Field(discriminator="name")]  # noqa: UP007 (of a tuple)


NORM_MEMBERS = members_of(norm, NormMember)
