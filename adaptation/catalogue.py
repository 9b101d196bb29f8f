"""What members there are and what each takes, read from their classes: for the API and the pages."""

import inspect
import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

from pydantic import Field

from .continual.layer_norms import LearningNorm
from .continual.learning import METHODS
from .member import Frozen, Member, Need, NormMember
from .recipe import PRESETS, SLOTS
from .taught_member import TaughtMember
from .update_member import UpdateMember

CALIBRATED = frozenset({Need.SOURCE_MOMENTS, Need.FISHER, Need.SOURCE_FEATURES})
LAYERS = frozenset({Need.BATCH_NORM, Need.SAMPLE_NORM, Need.NORM})
_CITATION = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


class Cost(StrEnum):
    """What a step costs beside the forward pass that every recipe shares, from least to most."""

    NOTHING = "nothing"
    PREDICTIONS = "predictions"
    MOMENTS = "moments"
    BACKWARD = "backward"
    SEVERAL_FORWARDS = "several forwards"


class Parameter(Frozen):
    """One value that can be set."""

    name: str = Field(description="with its group's before a dot, as in guard.patience")
    type: str = Field(description="number, integer, boolean or string")
    default: float | int | bool | str | None
    range: str | None = Field(description="in the notation of intervals, such as (0, 1]; null without bounds")
    minimum: float | None = Field(description="the lower bound, whether or not it is within the range")
    maximum: float | None
    choices: list[str] | None = Field(description="the values it may take; null when there is no list of them")
    description: str


class Method(Frozen):
    """One member of one slot."""

    slot: str = Field(description="its place in a recipe, with the group's before a dot, as in learn.norm")
    name: str
    summary: str = Field(description="in one sentence")
    text: list[str] = Field(description="all that its author says, in paragraphs")
    citations: list[str] = Field(description="numbers of arXiv, the member's own paper first")
    parameters: list[Parameter]
    layers: str | None = Field(description="the kind of layers that it needs; null when it needs none")
    backward: bool = Field(description="whether a step has a backward pass")
    classifier: bool = Field(description="whether the network must end in a linear classifier")
    calibration: bool = Field(description="whether the model must be calibrated")
    extra_forwards: str = Field(description="forward passes beside the one that answers")
    cost: Cost = Field(description="of a step, beside the forward pass that every recipe shares")
    preset: dict[str, Any] = Field(description="the recipe of this name")


def catalogue() -> list[Method]:
    """Every member, slot by slot.

    >>> [method.name for method in catalogue() if method.name == "ema"]
    ['ema']
    """
    return [_method(slot, name, member) for slot, members in SLOTS.items() for name, member in members.items()]


def _method(slot: str, name: str, kind: type[Member]) -> Method:
    member = kind(name=name)
    text = [" ".join(paragraph.split()) for paragraph in inspect.cleandoc(kind.__doc__ or "").split("\n\n")]
    schema = kind.model_json_schema()
    parameters = _parameters(schema, schema.get("$defs", {}), member.model_dump(mode="json"))
    return Method(
        slot=slot,
        name=name,
        summary=_summary(text[0]),
        text=text,
        citations=list(dict.fromkeys(_CITATION.findall(" ".join(text)))),
        parameters=[parameter for parameter in parameters if parameter.name != "name"],
        layers=next((need.value for need in Need if need in member.needs & LAYERS), None),
        backward=_learns(member),
        classifier=Need.CLASSIFIER in member.needs,
        calibration=bool(member.needs & CALIBRATED),
        extra_forwards=member.extra_forwards,
        cost=_cost(member),
        preset=PRESETS[name].model_dump(mode="json", exclude_none=True),
    )


def _learns(member: Member) -> bool:
    """Whether it moves parameters."""
    return isinstance(member, (UpdateMember, TaughtMember, LearningNorm, *METHODS.values()))


def _cost(member: Member) -> Cost:
    if member.extra_forwards != "none":
        return Cost.SEVERAL_FORWARDS
    if _learns(member):
        return Cost.BACKWARD
    if isinstance(member, NormMember):
        return Cost.MOMENTS if member.adapts else Cost.NOTHING
    return Cost.PREDICTIONS


def _summary(paragraph: str) -> str:
    """Its first sentence, without the citation, which has a place of its own."""
    bare = re.sub(r" \([^()]*\b(?:19|20)\d\d\b[^()]*\)", "", paragraph)
    return re.split(r"(?<=\.) (?=[A-Z])", bare, maxsplit=1)[0]


def _parameters(
    schema: dict[str, Any], groups: dict[str, Any], defaults: dict[str, Any], prefix: str = ""
) -> Iterator[Parameter]:
    """Of a JSON schema, those of its groups included."""
    for name, field in schema["properties"].items():
        group = groups.get(field.get("$ref", "").removeprefix("#/$defs/"))
        if group is not None:
            yield from _parameters(group, groups, defaults[name], f"{prefix}{name}.")
        else:
            yield _parameter(f"{prefix}{name}", field, defaults[name])


def _parameter(name: str, field: dict[str, Any], default: Any) -> Parameter:
    if "discriminator" in field:  # a member, which its name stands for
        field, default = field | {"type": "string", "enum": list(field["discriminator"]["mapping"])}, default["name"]
    # A field that may be left empty is "this or null" to JSON schema.
    field = field | next((each for each in field.get("anyOf", []) if each["type"] != "null"), {})
    least, most = (field.get(f"exclusive{side}", field.get(side.lower())) for side in ("Minimum", "Maximum"))
    return Parameter(
        name=name,
        type=field["type"],
        default=default,
        range=_interval(field, least, most),
        minimum=least,
        maximum=most,
        choices=field.get("enum"),
        description=field.get("description", ""),
    )


def _interval(field: dict[str, Any], least: float | None, most: float | None) -> str | None:
    if least is None and most is None:
        return None
    opening = "(" if least is None or "exclusiveMinimum" in field else "["
    closing = ")" if most is None or "exclusiveMaximum" in field else "]"
    below, above = "-inf" if least is None else _number(least), "inf" if most is None else _number(most)
    return f"{opening}{below}, {above}{closing}"


def _number(value: float) -> str:
    """Short: one that is written with powers is so."""
    if value > 10**9 and value == 2 ** (int(value).bit_length() - 1):
        return f"2^{int(value).bit_length() - 1}"
    return f"{value:g}"
