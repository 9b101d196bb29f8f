"""The table: phases across, recipes down."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from normstream.clients.demo.results import Results, Score
from normstream.clients.demo.trial import REFERENCE

WHAT = "Agreement with what the source model sees in the same frames in a clear view"
DETAILS = "entropy", "images/s"


def table(results: Results) -> Table:
    """Everything that was measured; green is better than the source in the same weather, red is worse."""
    shown = _table(results, f"{WHAT}; below it the mean entropy in nats, and images per second.", leading=1)
    for recipe in results.recipes:
        label = Text.assemble((recipe, "bold"), ("\n" + "\n".join(DETAILS), "dim"))
        shown.add_row(label, *(_cell(results, recipe, phase, detailed=True) for phase in results.phases))
    return shown


def glance(results: Results) -> Table:
    """The agreement alone, a line per recipe, to be watched on a small terminal."""
    shown = _table(results, f"{WHAT}.", leading=0)
    for recipe in results.recipes:
        cells = (_cell(results, recipe, phase, detailed=False) for phase in results.phases)
        shown.add_row(Text(recipe, "bold"), *cells)
    return shown


def _table(results: Results, caption: str, leading: int) -> Table:
    shown = Table(box=SIMPLE_HEAD, leading=leading, pad_edge=False, caption=caption, caption_justify="left")
    shown.add_column("recipe")
    for phase in results.phases:
        shown.add_column(phase, justify="right")
    return shown


def _cell(results: Results, recipe: str, phase: str, detailed: bool) -> Text:
    score = results.score(recipe, phase)
    if score is None:
        return Text("-", style="dim")
    source = results.score(REFERENCE, phase) or score
    details = f"\n{score.entropy:.2f}\n{score.images_per_s:.0f}" if detailed else ""
    return Text.assemble((f"{score.agreement:.0%}", _colour(score, source)), (details, "dim"))


def _colour(score: Score, source: Score) -> str:
    if score.agreement == source.agreement:
        return "bold"
    return "bold green" if score.agreement > source.agreement else "bold red"
