"""The root of the command line."""

from __future__ import annotations

from typing import Any

import typer

from normstream.clients.cli import edges, models, snapshots, streams
from normstream.clients.cli.lazy import LazyGroup
from normstream.clients.errors import NormstreamError
from normstream.clients.version_option import Version


class RootGroup(LazyGroup):
    """Turns the errors that people can mend into one line on stderr and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # typer ends quietly when the reader of a pipe has gone
        except (NormstreamError, OSError) as error:
            typer.echo(f"normstream: {_line(error)}", err=True)
            raise typer.Exit(1) from error


def _line(error: Exception) -> str:
    notes: list[str] = getattr(error, "__notes__", [])
    return " ".join("; ".join([str(error), *notes]).split())


app = typer.Typer(cls=RootGroup, no_args_is_help=True)
app.add_typer(streams.app, name="stream")
app.add_typer(snapshots.app, name="snapshot")
app.add_typer(edges.app, name="edge")
app.command("models")(models.models)
app.command("recipes")(models.recipes)
app.command("methods")(models.methods)


@app.callback()
def root(
    version: Version = False,
) -> None:
    """Image models that keep adapting to each camera."""
    del version  # Unused: its callback does the work.


def main() -> None:
    """Run the command line."""
    app()
