"""How answers reach the terminal: as one line of JSON, or as something to look at."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from functools import singledispatch
from typing import Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table

from normstream.clients.answers import (
    ClassScore,
    Method,
    Methods,
    Models,
    Parameter,
    Recipes,
    Snapshot,
    Stream,
    StreamEvent,
)
from normstream.clients.terminal import terminal


@dataclass(frozen=True, slots=True)
class FilePrediction:
    """What a model sees in one file."""

    file: str
    entropy: float
    top: tuple[ClassScore, ...]
    sample: str | None


@dataclass(frozen=True, slots=True)
class FilePredictions:
    """What a stream saw in many files, and how far that has brought it."""

    stream: str
    step: int
    version: int
    adapted: bool
    predictions: tuple[FilePrediction, ...]
    alarms: tuple[str, ...] = ()  # of the collapse guard


def show(value: Any, as_json: bool, look: Callable[[Any], RenderableType] | None = None) -> None:
    """Print an answer; `look` returns what people see of it, if `view` is not to."""
    if as_json:
        typer.echo(json.dumps(plain(value)))
    else:
        seen = (look or view)(value)
        terminal().print(seen, soft_wrap=isinstance(seen, str))  # a table wraps in its own cells


def plain(value: Any) -> Any:
    """Return an answer as JSON has it, under the names of the REST API."""
    if is_dataclass(value):
        return {f.metadata.get("key", f.name): plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value


@singledispatch
def view(value: Any) -> RenderableType:
    """Return what people see of an answer: if nothing else is known, its fields."""
    items = plain(value).items()
    return facts({name: recipe_name(item) if name == "recipe" else text(item) for name, item in items})


@view.register
def _(value: Models) -> RenderableType:
    rows = [
        {
            "model": f"{model.name} (default)" if model.name == value.default else model.name,
            "parameters": f"{model.parameters:,}",
            "classes": str(model.classes),
            "input": "x".join(map(str, model.input_size)),
            "layers": str(len(model.norm_layers)),
            "device": model.device,
        }
        for model in value
    ]
    return table(rows)


@view.register
def _(value: Recipes) -> RenderableType:
    return table([{"recipe": name, "value": json.dumps(recipe)} for name, recipe in value.presets.items()])


@view.register
def _(value: Methods) -> RenderableType:
    return table(
        [
            {"slot": method.slot, "method": method.name, "what it does": method.summary, "cost": method.cost}
            for method in value
        ],
        caption="normstream methods NAME shows one of them",
    )


@view.register
def _(value: Method) -> RenderableType:
    about = {
        "slot": value.slot,
        "needs": _needs(value),
        "cost": value.cost,
        "forwards": value.extra_forwards,
        "papers": ", ".join(f"https://arxiv.org/abs/{number}" for number in value.citations) or "-",
        "preset": json.dumps(value.preset),
    }
    paragraphs = "\n\n".join([value.name, *value.text])
    return Group(paragraphs, "", facts(about), "", table([_parameter(each) for each in value.parameters]))


def _needs(method: Method) -> str:
    asked = {"a linear classifier": method.classifier, "a calibrated model": method.calibration}
    return ", ".join(filter(None, [method.layers, *(name for name, wanted in asked.items() if wanted)])) or "nothing"


def _parameter(parameter: Parameter) -> dict[str, str]:
    return {
        "parameter": parameter.name,
        "default": text(parameter.default),
        "allowed": ", ".join(parameter.choices) if parameter.choices else parameter.range or parameter.type,
        "what it is": parameter.description,
    }


@view.register
def _(value: FilePredictions) -> RenderableType:
    rows = [
        {
            "file": image.file,
            "label": image.top[0].label,
            "probability": f"{image.top[0].probability:.3f}",
            "entropy": f"{image.entropy:.3f}",
            "sample": text(image.sample),
        }
        for image in value.predictions
    ]
    moved = "adapted to" if value.adapted else "not adapted, at"
    caption = f"stream {value.stream}: {moved} step {value.step}, version {value.version}"
    if value.alarms:
        caption += f"; {len(value.alarms)} steps discarded: {', '.join(dict.fromkeys(value.alarms))}"
    return table(rows, caption=caption)


@view.register
def _(value: StreamEvent) -> RenderableType:
    known = {name: getattr(value, name) for name in ("step", "version", "images", "entropy", "samples", "loss")}
    words = [value.kind, *(f"{name} {text(item)}" for name, item in known.items() if item is not None)]
    if value.new_classes:
        words.append(f"new {', '.join(value.new_classes)}")
    if value.kind == "learnt" and value.data.get("discarded"):
        words.append(f"discarded: {value.data['discarded']}")
    if value.alarm:
        words.append(f"{value.alarm}, {value.alarms} so far")
    if value.restored:
        words.append("last good parameters restored")
    if value.drift:
        layer = max(value.drift, key=lambda path: value.drift[path])
        words.append(f"largest drift {text(value.drift[layer])} at {layer}")
    return "  ".join(words)


@view.register
def _(value: list) -> RenderableType:  # type: ignore[type-arg] # singledispatch takes no parametrised types
    return table([_row(item) for item in value])


@singledispatch
def _row(item: Any) -> dict[str, str]:
    """Return one row of a list."""
    raise NotImplementedError(type(item).__name__)


@_row.register
def _(item: Stream) -> dict[str, str]:
    return {
        "stream": item.id,
        "model": item.model,
        "recipe": recipe_name(item.recipe),
        "step": str(item.step),
        "version": str(item.version),
        "updated": f"{item.updated_at:%Y-%m-%d %H:%M:%S}",
    }


@_row.register
def _(item: Snapshot) -> dict[str, str]:
    return {
        "snapshot": item.id,
        "stream": item.stream,
        "model": item.model,
        "recipe": recipe_name(item.recipe),
        "step": str(item.step),
        "bytes": f"{item.bytes:,}",
        "created": f"{item.created_at:%Y-%m-%d %H:%M:%S}",
    }


def facts(known: Mapping[str, str]) -> RenderableType:
    """Return facts under each other, each beside its name."""
    grid = Table.grid(padding=(0, 2))
    for name, fact in known.items():
        grid.add_row(name, fact)
    return grid


def table(rows: Sequence[Mapping[str, str]], caption: str | None = None) -> RenderableType:
    """Return rows as a table under the names of the first one's fields."""
    if not rows:
        return "none"
    shown = Table(box=None, pad_edge=False, header_style="bold", caption=caption, caption_justify="left")
    for name in rows[0]:
        shown.add_column(name, overflow="fold")
    for row in rows:
        shown.add_row(*row.values())
    return shown


def recipe_name(recipe: Mapping[str, Any]) -> str:
    """Name a recipe by its members."""
    return " x ".join(_members(recipe))


def _members(recipe: Mapping[str, Any]) -> Iterator[str]:
    """Yield the members' names; the slot `learn` holds two of them among its parameters."""
    for slot in recipe.values():
        if isinstance(slot, Mapping):
            members = [slot] if "name" in slot else [slot.get("method"), slot.get("norm")]
            yield from (str(member["name"]) for member in members if member)


def text(value: Any) -> str:
    """Return a value as people read it."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
