"""`--version`, which every command line has."""

from importlib.metadata import version
from typing import Annotated, TypeAlias

import typer


def _print(wanted: bool) -> None:
    if wanted:
        typer.echo(version("normstream"))
        raise typer.Exit


Version: TypeAlias = Annotated[
    bool, typer.Option("--version", callback=_print, is_eager=True, help="Print the version.")
]
