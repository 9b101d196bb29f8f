"""The picture: accuracy on each pair as further pairs are learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from normstream.clients.demo.picture import COLOURS, FAINT, GRID, INK
from normstream.clients.examples.accuracies import Accuracies
from normstream.clients.examples.cifar import PAIRS


def draw(accuracies: Accuracies, path: Path) -> None:
    """Write the picture; its format follows the file's suffix."""
    figure = Figure(figsize=(8, 4.6), dpi=130, layout="constrained")
    axes = figure.subplots()
    for number, (pair, colour) in enumerate(zip(PAIRS, COLOURS, strict=True)):
        curve = [100 * row[number] for row in accuracies[number:]]
        after = range(number, number + len(curve))
        axes.plot(after, curve, "o-", color=colour, label=", ".join(pair), markersize=4, linewidth=1.6)
    mean = [100 * float(np.mean(row)) for row in accuracies]
    axes.plot(mean, "o--", color=INK, label="mean", markersize=4, linewidth=2.2)
    axes.set(ylabel="accuracy, %", ylim=(0, 104), xlabel="after learning")
    axes.set_xticks(range(len(PAIRS)), [",\n".join(pair) for pair in PAIRS])
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.tick_params(length=0, colors=FAINT)
    axes.spines[:].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, labelcolor=INK)
    figure.savefig(path)
