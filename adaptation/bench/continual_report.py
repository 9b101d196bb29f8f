"""What continual learning amounts to: accuracy, forgetting, a table and the learning curves."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from normstream.adaptation.bench.plot import COLOURS, FAINT, INK

Accuracies: TypeAlias = Sequence[Sequence[float]]  # after each task, on each task learnt so far
Curves: TypeAlias = Mapping[str, Mapping[int, Sequence[Accuracies]]]  # by entrant and buffer, one for each seed


def average_accuracy(accuracies: Accuracies) -> float:
    """Mean over tasks, after the last one.

    >>> average_accuracy([[1.0], [0.5, 0.9]])
    0.7
    """
    return float(np.mean(accuracies[-1]))


def forgetting(accuracies: Accuracies) -> float:
    """How much the earlier tasks have lost since their best, in the mean (Chaudhry et al. 2018, arXiv:1801.10112).

    >>> forgetting([[1.0], [0.5, 0.9]])
    0.5
    """
    earlier = range(len(accuracies) - 1)
    lost = [max(row[task] for row in accuracies[task:-1]) - accuracies[-1][task] for task in earlier]
    return float(np.mean(lost)) if lost else 0.0


def gather(runs: Iterable[tuple[str, int, Accuracies]]) -> dict[str, dict[int, list[Accuracies]]]:
    """Runs by entrant and buffer."""
    curves: dict[str, dict[int, list[Accuracies]]] = {}
    for name, buffer, accuracies in runs:
        curves.setdefault(name, {}).setdefault(buffer, []).append(accuracies)
    return curves


def markdown(settings: Mapping[str, Any], curves: Curves) -> str:
    """The report: a row for each entrant, mean and deviation over seeds."""
    buffers = sorted({buffer for each in curves.values() for buffer in each})
    header = ["entrant", *(f"{what}, {buffer}" for buffer in buffers for what in ("accuracy", "forgetting"))]
    body = [
        [name, *(_spread(each.get(buffer, ()), what) for buffer in buffers for what in (average_accuracy, forgetting))]
        for name, each in curves.items()
    ]
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "\n".join(
        [
            "# Continual learning on Split CIFAR-10\n",
            *(f"- {name}: {value}" for name, value in settings.items()),
            "\nFinal average accuracy and forgetting in %, by images in the memory: mean ± deviation over seeds.\n",
            *(f"| {' | '.join(line)} |" for line in lines),
            "",
        ]
    )


def _spread(runs: Sequence[Accuracies], what: Any) -> str:
    values = 100 * np.array([what(each) for each in runs])
    if not len(values):
        return "-"
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def draw(curves: Curves, path: Path) -> None:
    """The learning curves: mean accuracy on the tasks learnt so far, a panel for each method and buffer."""
    panels = sorted({(name.split()[0], buffer) for name, each in curves.items() for buffer in each})
    figure = Figure(figsize=(4.2 * len(panels) + 0.6, 4.4), dpi=130, layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    norms = list(dict.fromkeys(name.split(" ", 1)[1] for name in curves))
    for axes, (method, buffer) in zip(all_axes, panels, strict=True):
        for number, norm in enumerate(norms):
            runs = curves.get(f"{method} {norm}", {}).get(buffer, ())
            if runs:
                seen = 100 * np.array([[np.mean(row) for row in accuracies] for accuracies in runs])  # [seeds, tasks]
                _line(axes, norm, seen, COLOURS[number % len(COLOURS)])
        axes.set_title(f"{method}, {buffer} images", loc="left", color=INK)
        _quiet(axes)
    all_axes[0].set_ylabel("accuracy on tasks so far, %")
    # A panel may lack a norm that another has.
    entries = {label: line for axes in all_axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=len(norms), frameon=False, labelcolor=INK
    )
    figure.savefig(path)


def _line(axes: Axes, name: str, seen: NDArray[np.floating], colour: str) -> None:
    tasks, mean = np.arange(1, seen.shape[1] + 1), seen.mean(0)
    axes.plot(tasks, mean, "o-", color=colour, label=name, markersize=4, linewidth=1.6)
    if len(seen) > 1:
        reach = seen.std(0, ddof=1)
        axes.fill_between(tasks, mean - reach, mean + reach, color=colour, alpha=0.15, linewidth=0)


def _quiet(axes: Axes) -> None:
    axes.set(xlabel="tasks", ylim=(0, 100))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#dfe3e7", linewidth=0.8)
    axes.tick_params(length=0, colors=FAINT)
    axes.spines[:].set_visible(False)
