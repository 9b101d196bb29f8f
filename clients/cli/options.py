"""The options and arguments that several commands share."""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeAlias

import typer

from normstream.clients.calls import Recipe
from normstream.clients.client import DEFAULT_URL

Url: TypeAlias = Annotated[
    str | None,
    typer.Option("--url", envvar="NORMSTREAM_URL", show_default=DEFAULT_URL, help="The server."),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]
StreamId: TypeAlias = Annotated[str, typer.Argument(metavar="ID", help="The stream's id.")]
SnapshotId: TypeAlias = Annotated[str, typer.Argument(metavar="SID", help="The snapshot's id.")]
RecipeText: TypeAlias = Annotated[str, typer.Option(metavar="NAME|JSON", help="A preset's name, or a recipe in JSON.")]


def recipe_of(text: str) -> Recipe:
    """Read a preset's name, or a recipe in JSON."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        recipe: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no JSON: {error}", param_hint="--recipe") from error
    return recipe
