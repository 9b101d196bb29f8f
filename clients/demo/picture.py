"""What pictures have in common: their colours, and where they may go."""

from __future__ import annotations

from pathlib import Path

import typer

# Okabe and Ito's colours, which the colour-blind tell apart; the source is ink.
INK, FAINT, GRID = "#22262b", "#7b828b", "#dfe3e7"
COLOURS = ("#d55e00", "#0072b2", "#56b4e9", "#009e73", "#cc79a7")

SUFFIXES = (".png", ".svg", ".pdf")


def check_picture(path: Path) -> None:
    """Refuse now what would fail only at the end.

    Raises:
        BadParameter: There is no such folder, or no such kind of picture.
    """
    if path.suffix not in SUFFIXES:
        raise typer.BadParameter(f"{path} ends in none of {', '.join(SUFFIXES)}", param_hint="--plot")
    if not path.resolve().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.resolve().parent}", param_hint="--plot")
