"""A stream's recipe: a typed, validated value that says how the stream adapts."""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field, ValidationError

from . import norm
from .member import Frozen, NormMember


def _members() -> dict[str, type[NormMember]]:
    """The members by name: the one subclass of `NormMember` in each file of `adaptation/norm/`."""
    found: dict[str, type[NormMember]] = {}
    for info in pkgutil.iter_modules(norm.__path__):
        module = importlib.import_module(f"{norm.__name__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, NormMember) and value.__module__ == module.__name__:
                found[info.name] = value
    return found


NORM_MEMBERS = _members()

if TYPE_CHECKING:
    AnyNorm = NormMember
else:
    AnyNorm = Annotated[Union[tuple(NORM_MEMBERS.values())], Field(discriminator="name")]  # noqa: UP007


class Recipe(Frozen):
    """What a stream does at each step. A slot left out is off.

    >>> Recipe.parse("alpha_bn").canonical()
    '{"norm":{"name":"alpha_bn","alpha":0.1}}'
    """

    norm: AnyNorm = Field(default_factory=NORM_MEMBERS["source"], description="statistics at every normalisation layer")

    @classmethod
    def parse(cls, value: object) -> "Recipe":
        """A recipe from a preset's name, a mapping or canonical JSON.

        Raises:
            ValueError: with every wrong field, the value seen and the allowed range.
        """
        try:
            if isinstance(value, str):
                return PRESETS[value] if value in PRESETS else cls._from_text(value)
            return cls.model_validate(value)
        except ValidationError as error:
            raise ValueError(explain(error)) from None

    @classmethod
    def _from_text(cls, text: str) -> "Recipe":
        if not text.lstrip().startswith("{"):
            raise ValueError(f"unknown recipe {text[:80]!r}; the presets are {', '.join(PRESETS)}")
        return cls.model_validate_json(text)

    def canonical(self) -> str:
        """One text for one recipe: equal recipes give equal texts."""
        return self.model_dump_json()


def explain(error: ValidationError) -> str:
    """Every wrong field in one line: where, what is wrong, the value seen."""
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc']) or 'recipe'}: {item['msg']} (got {item['input']!r:.80})"
        for item in error.errors(include_url=False)
    )


PRESETS: dict[str, Recipe] = {name: Recipe(norm=member(name=name)) for name, member in NORM_MEMBERS.items()}
"""Recipes with published defaults, by name."""
