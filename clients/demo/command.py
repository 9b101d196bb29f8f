"""The command `normstream demo`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from normstream.clients import Client
from normstream.clients.demo.footage import Footage
from normstream.clients.demo.picture import check_picture
from normstream.clients.demo.plot import draw
from normstream.clients.demo.report import glance, table
from normstream.clients.demo.results import Results
from normstream.clients.demo.scene import Camera
from normstream.clients.demo.server import LocalServer, local_server
from normstream.clients.demo.trial import Trial, contenders
from normstream.clients.demo.weather import PHASES

Serve = Annotated[bool, typer.Option("--serve", help="Leave the server up at the end, until Ctrl-C.")]
Plot = Annotated[
    Path, typer.Option(metavar="FILE", dir_okay=False, help="Where the picture goes (.png, .svg or .pdf).")
]
FramesPerPhase = Annotated[int, typer.Option("--frames", min=1, help="Frames per phase.")]
BatchSize = Annotated[int, typer.Option("--batch", min=1, help="Frames per request.")]
Stay = Annotated[int, typer.Option(min=1, help="Frames at one place before the camera goes on to the next.")]
Seed = Annotated[int, typer.Option(min=0, help="Another camera and other weather.")]


def demo(
    *,
    serve: Serve = False,
    plot: Plot = Path("normstream-demo.png"),
    frames: FramesPerPhase = 64,
    batch: BatchSize = 8,
    stay: Stay = 1,
    seed: Seed = 0,
) -> None:
    """Watch a server adapt to corrupted photographs.

    A camera goes round six photographs while fog, snow and faults of its sensor come and go. Every frame goes to one
    stream per recipe.
    """
    check_picture(plot)
    footage = Footage(Camera.on_round(seed, stay), PHASES, frames, seed)
    console = Console()
    with local_server(console) as server:
        with server.client() as client:
            results = run(client, footage, batch, console)
        console.print(table(results))
        draw(footage, results, plot)
        console.print(f"Picture: {plot.resolve()}", soft_wrap=True, highlight=False)
        if serve:
            _stay_up(server, footage, console)


def run(client: Client, footage: Footage, batch: int, console: Console) -> Results:
    """Show the footage to the server, and on a terminal show how it goes."""
    recipes = contenders(client.recipes().presets)
    results = Results(recipes, [phase.name for phase in footage.phases])
    trial = Trial(client, recipes)
    bar = Progress(TextColumn("frames"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    task = bar.add_task("", total=len(footage))
    with Live(Group(glance(results), bar), console=console, transient=True) as live:
        for shown in footage.batches(batch):
            for observation in trial.step(shown):
                results.add(observation)
            bar.advance(task, len(shown.clean))
            live.update(Group(glance(results), bar))
    return results


def _stay_up(server: LocalServer, footage: Footage, console: Console) -> None:
    """Say what to try, and wait for Ctrl-C."""
    photo = server.folder / "frame.jpg"
    Image.fromarray(footage.clean(0)).save(photo, quality=92)
    console.print(f"\nThe server is up at {server.url} until Ctrl-C. Try:\n", soft_wrap=True, highlight=False)
    for line in curl_lines(server.url, photo):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    with suppress(KeyboardInterrupt):
        server.wait()


def curl_lines(url: str, photo: Path) -> tuple[str, str, str]:
    """Create a stream, predict a photograph, reset the stream."""
    streams = f"{url}/v1/streams"
    return (
        f"""curl -s {streams} -H 'Content-Type: application/json' -d '{{"id": "mine", "recipe": "alpha_bn"}}'""",
        f"curl -s '{streams}/mine/predict?top_k=3' -F images=@{photo}",
        f"curl -s -X POST {streams}/mine/reset",
    )
