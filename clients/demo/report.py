"""The table: phases across, recipes down."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from normstream.clients.demo.results import Results, Score
from normstream.clients.demo.trial import REFERENCE

CAPTION = (
    "Agreement with what the source model sees in the same frames in a clear view; "
    "below it the mean entropy in nats, and images per second."
)


def table(results: Results) -> Table:
    """What is known so far; green is better than the source in the same weather, red is worse."""
    shown = Table(box=SIMPLE_HEAD, leading=1, pad_edge=False, caption=CAPTION, caption_justify="left")
    shown.add_column("recipe")
    for phase in results.phases:
        shown.add_column(phase, justify="right")
    for recipe in results.recipes:
        label = Text.assemble((recipe, "bold"), ("\nentropy\nimages/s", "dim"))
        shown.add_row(label, *(_cell(results, recipe, phase) for phase in results.phases))
    return shown


def _cell(results: Results, recipe: str, phase: str) -> Text:
    score = results.score(recipe, phase)
    if score is None:
        return Text("-", style="dim")
    source = results.score(REFERENCE, phase) or score
    details = f"\n{score.entropy:.2f}\n{score.images_per_s:.0f}"
    return Text.assemble((f"{score.agreement:.0%}", _colour(score, source)), (details, "dim"))


def _colour(score: Score, source: Score) -> str:
    if score.agreement == source.agreement:
        return "bold"
    return "bold green" if score.agreement > source.agreement else "bold red"
