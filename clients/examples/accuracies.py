"""What learning pair after pair amounts to: the accuracies, what was forgotten, and a table of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from normstream.clients.examples.cifar import PAIRS

Accuracies: TypeAlias = Sequence[Sequence[float]]  # after each pair, on each pair so far; in [0, 1]


def forgetting(accuracies: Accuracies) -> list[float]:
    """Return what each earlier pair has lost since its best (Chaudhry et al. 2018, arXiv:1801.10112).

    >>> forgetting([[1.0], [0.5, 0.75], [0.25, 1.0, 0.5]])
    [0.75, -0.25]
    """
    earlier = range(len(accuracies) - 1)
    return [max(row[pair] for row in accuracies[pair:-1]) - accuracies[-1][pair] for pair in earlier]


def table(accuracies: Accuracies) -> Table:
    """Return a row for each pair learnt, and one for what was forgotten in the end."""
    caption = "Accuracy on test images of each pair, among all classes so far."
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left", show_footer=True)
    lost = forgetting(accuracies)
    shown.add_column("after", footer="forgotten")
    for number, pair in enumerate(PAIRS):
        shown.add_column("\n".join(pair), justify="right", footer=_percent(lost[number]) if number < len(lost) else "")
    shown.add_column("mean", justify="right", footer=_percent(float(np.mean(lost))) if lost else "")
    for pair, row in zip(PAIRS, accuracies, strict=False):
        cells = [*map(_percent, row), *[""] * (len(PAIRS) - len(row))]
        shown.add_row(", ".join(pair), *cells, _percent(float(np.mean(row))))
    return shown


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
