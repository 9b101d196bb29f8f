"""The picture: what the camera saw, and how each recipe's stream fared under it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from normstream.clients.demo.footage import Footage
from normstream.clients.demo.picture import COLOURS, FAINT, GRID, INK
from normstream.clients.demo.results import Observation, Results
from normstream.clients.demo.trial import REFERENCE

BANDS = ("#ffffff", "#f2f4f6")
WINDOW = 5  # batches that one point of a curve is the mean of

Measure = Callable[[Observation], NDArray[np.floating]]


def draw(footage: Footage, results: Results, path: Path) -> None:
    """Write the picture; its format follows the file's suffix."""
    figure = Figure(figsize=(12, 8.8), dpi=130)
    figure.subplots_adjust(left=0.07, right=0.985, top=0.835, bottom=0.065)
    grid = {"height_ratios": (1.72, 3.3, 2.0), "hspace": 0.06}
    strip, agreement, entropy = figure.subplots(3, 1, sharex=True, gridspec_kw=grid)
    _film(strip, footage)
    _panel(agreement, footage, results, lambda seen: 100.0 * seen.agreed)
    _panel(entropy, footage, results, lambda seen: seen.entropy)
    agreement.set(ylabel="agreement, %", ylim=(0, 104))
    entropy.set(ylabel="entropy, nats", xlabel="frame")
    figure.align_ylabels((agreement, entropy))
    _head(figure, agreement)
    figure.savefig(path)


def _head(figure: Figure, labelled: Axes) -> None:
    figure.text(0.07, 0.955, "One camera, one model, a stream per recipe", size=17, weight="bold", color=INK)
    what = "How often each stream names a frame as the source model does when the view is clear, in %; and its entropy"
    figure.text(0.07, 0.926, what, size=11, color=FAINT)
    handles, labels = labelled.get_legend_handles_labels()
    look: dict[str, Any] = {"ncols": len(labels), "frameon": False, "fontsize": 11, "labelcolor": INK}
    figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.063, 0.92), handlelength=1.8, **look)


def _film(axes: Axes, footage: Footage) -> None:
    """A frame of each phase, under the phase's name."""
    for number, phase in enumerate(footage.phases):
        left = number * footage.frames
        gap = 0.03 * footage.frames
        extent = (left + gap, left + footage.frames - gap, 0.03, 0.97)
        axes.imshow(footage.sample(number), extent=extent, aspect="auto", interpolation="lanczos")
        middle = left + footage.frames / 2
        axes.annotate(phase.name, (middle, 1.03), ha="center", va="bottom", size=11, color=INK, annotation_clip=False)
    axes.set(xlim=(0, len(footage)), ylim=(0, 1))
    axes.set_axis_off()


def _panel(axes: Axes, footage: Footage, results: Results, measure: Measure) -> None:
    for number, _ in enumerate(footage.phases):
        left = number * footage.frames
        axes.axvspan(left, left + footage.frames, color=BANDS[number % 2], zorder=0, linewidth=0)
    for recipe, colour in zip(results.recipes, (INK, *COLOURS), strict=False):
        style = {"linewidth": 2.0, "linestyle": (0, (4, 1.6))} if recipe == REFERENCE else {"linewidth": 2.2}
        axes.plot(*_curve(results, recipe, measure), color=colour, label=recipe, solid_capstyle="round", **style)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=FAINT, labelsize=10)
    axes.xaxis.label.set_color(FAINT)
    axes.yaxis.label.set_color(FAINT)
    axes.spines[:].set_visible(False)


def _curve(results: Results, recipe: str, measure: Measure) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """The middle frame of each batch, and the measure there, smoothed within each phase."""
    phases = [results.of(recipe, phase) for phase in results.phases]
    sizes = np.array([seen.agreed.size for phase in phases for seen in phase])
    smooth = [_smooth(np.array([measure(seen).mean() for seen in phase])) for phase in phases if phase]
    return np.cumsum(sizes) - sizes / 2, np.concatenate(smooth)


def _smooth(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """A centred moving mean, over fewer values at both ends."""
    reach = WINDOW // 2
    return np.array([values[max(i - reach, 0) : i + reach + 1].mean() for i in range(values.size)])
