"""A stream's recipe: a typed, validated value that says how the stream adapts."""

from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError, model_validator

from . import output, update
from .continual.learning import METHODS, NORMS, Learning
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
    "learn.method": METHODS,
    "learn.norm": NORMS,
}

if TYPE_CHECKING:
    AnyNorm = NormMember
    AnyUpdate = UpdateMember | TaughtMember
    AnyOutput = OutputMember
else:
    AnyNorm, AnyUpdate, AnyOutput = (one_of(*SLOTS[slot].values()) for slot in ("norm", "update", "output"))


class Recipe(Frozen):
    """What a stream does at each step. A slot left out is off.

    >>> Recipe.parse("alpha_bn").canonical()
    '{"norm":{"name":"alpha_bn","alpha":0.1}}'
    """

    norm: AnyNorm = Field(default_factory=NORM_MEMBERS["source"], description="statistics at every normalisation layer")
    update: AnyUpdate | None = Field(None, description="affine parameters, moved by a loss")
    output: AnyOutput | None = Field(None, description="predictions, adjusted after the network")
    learn: Learning | None = Field(None, description="what is learnt from labels, new classes included")

    @model_validator(mode="after")
    def _go_together(self) -> "Recipe":
        if self.learn is None:
            return self
        if isinstance(self.update, TaughtMember):
            raise ValueError(
                f"update member {self.update.name!r} learns from a teacher and learn from labels, each by parameters of"
                " its own; leave one of the two out"
            )
        adapts = self.norm.adapts or self.update is not None
        if self.learn.own_network and adapts:
            raise ValueError(
                "learn with learns: all, or with norm cn or gn, makes a network of the stream's own, in which norm and"
                " update members have no place; leave them out, or use learns: affine or head and norm: adab2n, bn or"
                " null"
            )
        if adapts and "features" in {self.learn.unlabelled, self.learn.replay.keep}:
            raise ValueError(
                "learn from features goes with nothing that adapts: the same image would have others a moment later,"
                " and beside other images; keep images, or leave norm and update members out"
            )
        if self.update is not None and self.learn.learns != "head":
            raise ValueError(
                f"update member {self.update.name!r} and learn with learns: {self.learn.learns} would both move the"
                " norm layers' parameters; use learns: head, or leave update out"
            )
        return self

    @property
    def members(self) -> list[Member]:
        """Those of the slots that are on."""
        learning = () if self.learn is None else (self.learn.method, self.learn.norm)
        slots: tuple[Member | None, ...] = (self.norm, self.update, self.output, *learning)
        return [member for member in slots if member is not None]

    @property
    def teacher(self) -> str | None:
        """The model that teaches a stream of this recipe; None where it learns by itself, or not at all."""
        return self.update.teacher if isinstance(self.update, TaughtMember) else None

    @property
    def lesson_images(self) -> int:
        """The most images of which one pass of a lesson holds all activations; 0 where there are no such lessons."""
        if isinstance(self.update, TaughtMember):
            return self.update.batch
        return 0 if self.learn is None else self.learn.lesson_images

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


def _learning(**choice: dict[str, str]) -> Recipe:
    """A preset that learns from labels; naming it asks for the memory of images that its method needs."""
    images = {"replay": {"keep": "images"}, "unlabelled": "images"}
    return Recipe(learn=Learning.model_validate(choice | images))


PRESETS: dict[str, Recipe] = {
    **{name: Recipe(norm=member(name=name)) for name, member in NORM_MEMBERS.items()},
    **{
        name: Recipe(norm=NORM_MEMBERS[member.usual_norm](name=member.usual_norm), update=member(name=name))
        for name, member in SLOTS["update"].items()
    },
    **{name: Recipe(output=member(name=name)) for name, member in OUTPUT_MEMBERS.items()},
    **{name: _learning(method={"name": name}) for name in METHODS},
    **{name: _learning(norm={"name": name}) for name in NORMS},
}
"""Recipes with published defaults, by name."""
