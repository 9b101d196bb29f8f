"""The command `normstream bench`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from normstream.adaptation import HostedModel
from normstream.adaptation.bench import corruptions as known
from normstream.adaptation.bench import datasets, plot, report, results
from normstream.adaptation.bench.cache import Cache
from normstream.adaptation.bench.calibration import calibrate_on
from normstream.adaptation.bench.datasets import Dataset
from normstream.adaptation.bench.errors import BenchError, given_by
from normstream.adaptation.bench.metrics import Score
from normstream.adaptation.bench.orders import Order
from normstream.adaptation.bench.results import Results
from normstream.adaptation.bench.run import Contender, Reset, Stream, contenders, follow
from normstream.adaptation.bench.source_model import DEFAULT

RECIPES = ("source", "bn1", "alpha_bn")

Data = Annotated[Path, typer.Option(metavar="PATH", help="Labelled images: photographs or CIFAR-10 (docs/bench.md).")]
Out = Annotated[Path, typer.Option(metavar="FOLDER", help="Where results go; a run that was cut short goes on there.")]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="For photographs as in `normstream serve`; for CIFAR-10 a .safetensors file of weights.",
        show_default=f"{DEFAULT}; for CIFAR-10 the file beside the data",
    ),
]
Recipes = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe", metavar="NAME|JSON", help="Preset or JSON; may be repeated.", show_default=", ".join(RECIPES)
    ),
]
Corruptions = Annotated[
    str | None, typer.Option(metavar="A,B,...", help="Which, in this order.", show_default="all 15")
]
Calibrate = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="Clean images, laid out as in --data, for recipes that need a calibration."),
]
Severity = Annotated[int, typer.Option(min=1, max=5, help="How strong.")]
InOrder = Annotated[Order, typer.Option("--order", help="Who comes when.")]
Delta = Annotated[float, typer.Option(min=0.001, help="Concentration of `--order dirichlet`.")]
BatchSize = Annotated[int, typer.Option("--batch", min=1, help="Images per step.")]
ResetWhen = Annotated[Reset, typer.Option("--reset", help="Never, or when the corruption changes.")]
Images = Annotated[int | None, typer.Option(min=1, help="Use this many, evenly spaced.", show_default="all")]
Seed = Annotated[int, typer.Option(min=0, help="Of corruptions and orders.")]
CacheFolder = Annotated[
    Path | None,
    typer.Option("--cache", metavar="FOLDER", help="Keeps corrupted images.", show_default="corrupted/ in --out"),
]


def bench(
    *,
    data: Data,
    out: Out,
    model: Model = None,
    recipe: Recipes = None,
    calibrate: Calibrate = None,
    corruptions: Corruptions = None,
    severity: Severity = 5,
    order: InOrder = "shuffled",
    dirichlet: Delta = 0.1,
    batch: BatchSize = 64,
    reset: ResetWhen = "continual",
    images: Images = None,
    seed: Seed = 0,
    cache: CacheFolder = None,
) -> None:
    """Measure recipes on labelled images under corruptions."""
    try:
        shown = Shown(
            known.chosen(",".join(known.NAMES) if corruptions is None else corruptions),
            severity,
            order,
            dirichlet,
            batch,
            reset,
            seed,
        )
        entrants = contenders(recipe or RECIPES)
        with given_by("--data"):
            source = datasets.find(data)
        hosted, calibration = source.host(model), None
        if calibrate is not None:
            with given_by("--calibrate"):
                calibration = calibrate_on(hosted, calibrate)
        for entrant in entrants:
            entrant.begin(hosted)  # Refuse now what could not be served later.
        with given_by("--data"):
            dataset = source.load(hosted, images)
        if images is not None and images > len(dataset.labels):
            raise BenchError(f"--images: {images} are asked for, and there are {len(dataset.labels)}")
        kept = Results(out, shown.settings(hosted, dataset) | {"calibration": calibration})
        kept.open()
        scores = run(hosted, entrants, dataset, shown, kept, Cache(cache or out / "corrupted"), source.small)
    except BenchError as error:
        typer.echo(f"normstream bench: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None
    publish(kept, entrants, scores)


@dataclass(frozen=True, slots=True)
class Shown:
    """What is asked of every stream."""

    corruptions: list[str]
    severity: int
    order: Order
    delta: float
    batch: int
    reset: Reset
    seed: int

    def settings(self, hosted: HostedModel, dataset: Dataset) -> dict[str, Any]:
        """All that a figure depends on beside the recipe."""
        return {
            "model": hosted.name,
            "fingerprint": hosted.fingerprint,
            "data": f"sha256:{dataset.digest}",
            "images": len(dataset.labels),
            "corruptions": self.corruptions,
            "severity": self.severity,
            "order": self.order,
            "dirichlet": self.delta if self.order == "dirichlet" else None,
            "batch": self.batch,
            "reset": self.reset,
            "seed": self.seed,
            "normstream": version("normstream"),
            "torch": version("torch"),
        }


def run(
    hosted: HostedModel,
    entrants: Sequence[Contender],
    dataset: Dataset,
    shown: Shown,
    kept: Results,
    cache: Cache,
    small: bool,
) -> dict[str, list[Score]]:
    """Measure what is not yet measured; the scores of each recipe by its name."""
    scores = {entrant.name: kept.finished(entrant) for entrant in entrants}
    missing = [entrant for entrant in entrants if scores[entrant.name] is None]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bars:
        total = len(dataset.labels) * len(shown.corruptions)
        segments = {}
        if missing:
            advance = _bar(bars, "corrupted images", total)
            for name in shown.corruptions:
                segments[name] = cache.corrupted(
                    dataset, name, shown.severity, shown.seed, small=small, advance=advance
                )
        stream = Stream(segments, dataset.labels, shown.order, shown.delta, shown.batch, shown.reset, shown.seed)
        for entrant in missing:
            measured: list[Score] = []
            for score in follow(hosted, entrant, stream, _bar(bars, entrant.name, total)):
                measured.append(score)
                kept.keep(entrant, measured)
            scores[entrant.name] = measured
    return {name: measured for name, measured in scores.items() if measured is not None}


def publish(kept: Results, entrants: Sequence[Contender], scores: dict[str, list[Score]]) -> None:
    """Write what people look at, and print the tables."""
    recipes = [results.entry(entrant, scores[entrant.name]) for entrant in entrants]
    results.write(kept.folder / "results.json", {"settings": kept.settings, "recipes": recipes})
    text = report.markdown(kept.settings, scores)
    (kept.folder / "results.md").write_text(text)
    title = "{model}: {order}, severity {severity}, batches of {batch}, {reset}".format(**kept.settings)
    plot.draw(title, scores, kept.folder / "results.png")
    typer.echo(text)


def _bar(bars: Progress, what: str, total: int) -> Callable[[int], None]:
    task = bars.add_task(what, total=total)
    return lambda images: bars.advance(task, images)
