"""A stream's recipe: a typed, validated value that says how the stream adapts."""

from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from . import output, update
from .member import Frozen, Member, NormMember, OutputMember
from .slots import NORM_MEMBERS, members_of, one_of
from .taught_member import TaughtMember
from .update_member import UpdateMember

UPDATE_MEMBERS = members_of(update, UpdateMember)
TAUGHT_MEMBERS = members_of(update, TaughtMember)
OUTPUT_MEMBERS = members_of(output, OutputMember)
SLOTS: dict[str, dict[str, type[Any]]] = {
    "norm": NORM_MEMBERS,
    "update": dict(sorted((UPDATE_MEMBERS | TAUGHT_MEMBERS).items())),
    "output": OUTPUT_MEMBERS,
}

if TYPE_CHECKING:
    AnyNorm = NormMember
    AnyUpdate = UpdateMember | TaughtMember
    AnyOutput = OutputMember
else:
    AnyNorm, AnyUpdate, AnyOutput = (one_of(*members.values()) for members in SLOTS.values())


class Recipe(Frozen):
    """What a stream does at each step. A slot left out is off.

    >>> Recipe.parse("alpha_bn").canonical()
    '{"norm":{"name":"alpha_bn","alpha":0.1}}'
    """

    norm: AnyNorm = Field(default_factory=NORM_MEMBERS["source"], description="statistics at every normalisation layer")
    update: AnyUpdate | None = Field(None, description="affine parameters, moved by a loss")
    output: AnyOutput | None = Field(None, description="predictions, adjusted after the network")

    @property
    def members(self) -> list[Member]:
        """Those of the slots that are on."""
        slots: tuple[Member | None, ...] = (self.norm, self.update, self.output)
        return [member for member in slots if member is not None]

    @property
    def teacher(self) -> str | None:
        """The model that teaches a stream of this recipe; None where it learns by itself, or not at all."""
        return self.update.teacher if isinstance(self.update, TaughtMember) else None

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
        return self.model_dump_json(exclude_none=True)


def explain(error: ValidationError) -> str:
    """Every wrong field in one line: where, what is wrong, the value seen."""
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc']) or 'recipe'}: {item['msg']} (got {item['input']!r:.80})"
        for item in error.errors(include_url=False)
    )


PRESETS: dict[str, Recipe] = {
    **{name: Recipe(norm=member(name=name)) for name, member in NORM_MEMBERS.items()},
    **{
        name: Recipe(norm=NORM_MEMBERS[member.usual_norm](name=member.usual_norm), update=member(name=name))
        for name, member in SLOTS["update"].items()
    },
    **{name: Recipe(output=member(name=name)) for name, member in OUTPUT_MEMBERS.items()},
}
"""Recipes with published defaults, by name."""
