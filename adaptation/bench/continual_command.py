"""The command `normstream bench continual`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from normstream.adaptation.bench.continual import CLASSES_PER_TASK, ENTRANTS, Network, Run, Setting, measure
from normstream.adaptation.bench.errors import BenchError

TASKS = 10 // CLASSES_PER_TASK


def bench_continual(
    *,
    data: Annotated[Path, typer.Option(metavar="FOLDER", help="CIFAR-10's train.npz and test.npz (docs/bench.md).")],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where results go; a run that was cut short goes on there.")
    ],
    entrant: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Method and norm; may be repeated.", show_default="all")
    ] = None,
    buffer: Annotated[
        list[int] | None, typer.Option(min=1, metavar="IMAGES", help="Replayed from.", show_default="500 and 2000")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many.")] = 3,
    network: Annotated[Network, typer.Option(help="From scratch.")] = "resnet10",
    epochs: Annotated[int, typer.Option(min=1, help="1 is online.")] = 1,
    images: Annotated[int | None, typer.Option(min=1, help="To learn from.", show_default="all")] = None,
    test_images: Annotated[int | None, typer.Option(min=1, help="To test on.", show_default="all")] = None,
    device: Annotated[str, typer.Option(help="Torch device.")] = "cpu",
) -> None:
    """Measure methods that learn classes one pair after the other."""
    known = {each.name: each for each in ENTRANTS}
    try:
        if unknown := set(entrant or ()) - known.keys():
            raise BenchError(f"--entrant: {sorted(unknown)[0]!r} is none of {', '.join(known)}")
        chosen = [known[name] for name in entrant or known]
        buffers = buffer or [500, 2000]
        setting = Setting(network=network, epochs=epochs, images=images, test_images=test_images, device=device)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        screen = Console(stderr=True)
        with Progress(*columns, console=screen, disable=not screen.is_interactive) as bars:
            bar = bars.add_task("tasks learnt", total=len(chosen) * len(buffers) * seeds * TASKS)

            def advance(run: Run) -> None:
                bars.update(bar, advance=1, description=f"{run.entrant.name}, buffer {run.buffer}, seed {run.seed}")

            measure(data, out, setting, entrants=chosen, buffers=buffers, seeds=range(seeds), advance=advance)
    except BenchError as error:
        typer.echo(f"normstream bench continual: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None
    typer.echo((out / "results.md").read_text())
