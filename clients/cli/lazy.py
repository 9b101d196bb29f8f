"""Commands that are imported only when they are used.

The demo, and what other parts of the package add through the entry points `normstream.commands`, need libraries that
a client does without. Each stands in the help by name; without its libraries it says how to get them.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from normstream.clients.errors import NormstreamError

GROUP = "normstream.commands"
DEMO = EntryPoint("demo", "normstream.clients.demo.command:demo", GROUP)
SUMMARIES = {
    "demo": "Watch a server adapt to corrupted photographs.",
    "bench": "Measure recipes on labelled images under corruptions.",
    "bench continual": "Measure methods that learn classes one pair after the other.",
    "bench edge": "Measure what a cloud-taught edge gains, and what it costs.",
    "calibrate": "Measure what some recipes need to know of a model's source data.",
    "serve": "Serve models over HTTP.",
    "doctor": "Check that this machine can serve.",
}


class MissingExtraError(NormstreamError):
    """A command's libraries are not installed."""


class LazyCommand(TyperCommand):
    """Stands for a command until that is used."""

    def __init__(self, target: EntryPoint, extra: str) -> None:
        super().__init__(
            target.name,
            help=SUMMARIES.get(target.name, f"Added by {target.module}."),
            callback=self.explain,
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        )
        self.target = target
        self.extra = extra
        self.missing: str | None = None

    def load(self) -> Any:
        """Return the command itself, or this one, which then explains what is missing."""
        try:
            return _command(self.target)
        except ModuleNotFoundError as error:
            if _is_ours(error.name):
                raise
            self.missing = error.name
            return self

    def explain(self) -> None:
        """Say what to install."""
        raise MissingExtraError(
            f"`normstream {self.name}` needs {self.missing}, which is not installed: "
            f'pip install "normstream[{self.extra}]"'
        )


class LazyGroup(TyperGroup):
    """The group of all commands, the lazy ones among them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.add_command(LazyCommand(DEMO, extra="bench"))
        for target in sorted(entry_points(group=GROUP), key=lambda target: target.name):
            self.add_command(LazyCommand(target, extra="bench" if target.name.startswith("bench") else "server"))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command to run; only here is a lazy one imported. A name may be two words, as in `bench edge`."""
        words = " ".join(args[:2])
        name, command, rest = super().resolve_command(ctx, [words, *args[2:]] if words in self.commands else args)
        return name, command.load() if isinstance(command, LazyCommand) else command, rest


def _command(target: EntryPoint) -> Any:
    found = target.load()
    if isinstance(found, typer.Typer):
        return get_command(found)
    app = typer.Typer(add_completion=False)
    app.command(target.name)(found)
    return get_command(app)


def _is_ours(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] == "normstream"
