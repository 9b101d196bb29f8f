"""The command line of the edge: `normstream-edge`."""

from __future__ import annotations

import json
import logging
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.logging import RichHandler
from rich.table import Table

from normstream.clients.edge import bench as benchmark
from normstream.clients.edge.client import EdgeClient
from normstream.clients.edge.errors import BadImage, BadPackage
from normstream.clients.edge.folder import Folder
from normstream.clients.edge.local import EMA, AlphaBN, Choice
from normstream.clients.edge.metrics import serving
from normstream.clients.edge.options import Options
from normstream.clients.edge.package import Package
from normstream.clients.edge.prediction import EdgePrediction
from normstream.clients.edge.selection import Criteria
from normstream.clients.edge.sources import Frame, SourceError, open_source
from normstream.clients.edge.status import Status
from normstream.clients.errors import InvalidArgument, NormstreamError
from normstream.clients.terminal import terminal
from normstream.clients.version_option import Version


class Local(StrEnum):
    """Adaptation to the edge's own images."""

    AUTO = "auto"
    OFF = "off"
    ALPHA_BN = "alpha_bn"
    EMA = "ema"


class ImageFormat(StrEnum):
    """How samples are encoded."""

    JPEG = "jpeg"
    WEBP = "webp"


class Precision(StrEnum):
    """Of parameters as they travel."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"


_CHOICES: dict[Local, Choice] = {
    Local.AUTO: "auto",
    Local.OFF: None,
    Local.ALPHA_BN: AlphaBN(),
    Local.EMA: EMA(),
}

FolderOption = Annotated[
    Path, typer.Option("--folder", metavar="DIR", help="Where the edge keeps everything; each edge has its own.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def root(
    version: Version = False,
) -> None:
    """Predict on this machine with a model that a server adapts; needs no torch."""
    del version  # Unused: its callback does the work.


@app.command()
def run(
    server: Annotated[str, typer.Option(metavar="URL", help="The server.")],
    edge: Annotated[str, typer.Option(metavar="ID", help="The edge's id.")],
    source: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="A folder of images, a video file, camera:N, the address of a network camera, "
            "or - for JPEG images one after another on the standard input.",
        ),
    ],
    folder: FolderOption = Path("normstream-edge"),
    model: Annotated[str | None, typer.Option(help="A hosted model.", show_default="the server's")] = None,
    recipe: Annotated[str, typer.Option(help="How it is adapted: a preset's name, or a recipe in JSON.")] = "cema",
    group: Annotated[str | None, typer.Option(help="Edges of one group share their adaptation.")] = None,
    key: Annotated[
        str | None,
        typer.Option(
            envvar="NORMSTREAM_EDGE_KEY", help="The edge's secret.", show_default="made up at the first start"
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=64, help="Images in one forward pass.")] = 1,
    top_k: Annotated[int, typer.Option(min=1, max=1000, help="Classes in a prediction.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Of a forward pass.", show_default="all cores")] = None,
    local: Annotated[
        Local, typer.Option(help="Adapt to the edge's own images too; auto is ema for models with batch norms.")
    ] = Local.AUTO,
    every: Annotated[int, typer.Option(min=1, help="Take one frame of so many of a video or camera.")] = 1,
    watch: Annotated[bool, typer.Option("--watch", help="Wait for more files once a folder has been read.")] = False,
    unreliable: Annotated[
        float, typer.Option(min=1e-9, help="Entropy, in parts of ln(classes), from which on an image is not sent.")
    ] = 0.4,
    uninformative: Annotated[
        float, typer.Option(min=0, max=0.999, help="Entropy, in parts of ln(classes), up to which one is not sent.")
    ] = 0.02,
    redundant: Annotated[
        float, typer.Option(min=1e-9, help="Likeness to what was sent from which on one is not sent; above 1 is off.")
    ] = 0.05,
    bytes_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Bytes of samples that may be uploaded.", show_default="no bound")
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of the samples' encoding.")] = 85,
    image_format: Annotated[ImageFormat, typer.Option("--format", help="Of the samples.")] = ImageFormat.JPEG,
    spool_bytes: Annotated[int, typer.Option(min=2**16, help="Samples that may wait on the disk.")] = 64 * 2**20,
    precision: Annotated[Precision, typer.Option(help="Of parameters as they travel.")] = Precision.FLOAT16,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve Prometheus' metrics.", show_default="off")
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="The address that the metrics are served at.")] = "127.0.0.1",
    drain: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="When the source ends, how long to go on uploading.")
    ] = 0.0,
) -> None:
    """Predict the images of a source, each as a line of JSON on the standard output."""
    _log_to_stderr()
    signal.signal(signal.SIGTERM, _leave)
    options = Options(
        top_k=top_k,
        threads=threads,
        local=_CHOICES[local],
        criteria=Criteria(unreliable=unreliable, uninformative=uninformative, redundant=redundant),
        bytes_per_hour=math.inf if bytes_per_hour is None else bytes_per_hour,
        quality=quality,
        format=image_format.value,
        spool_bytes=spool_bytes,
        precision=precision.value,
        first_contact_s=math.inf,
    )
    with ExitStack() as stack:
        frames = open_source(source, watch=watch, every=every, stdin=sys.stdin.buffer)
        client = stack.enter_context(
            EdgeClient(server, edge, folder, model=model, recipe=_recipe(recipe), group=group, key=key, options=options)
        )
        if metrics_port is not None:
            port = stack.enter_context(serving(metrics_port, client.status, metrics_host))
            logging.getLogger(__name__).info("metrics at http://%s:%d/metrics", metrics_host, port)
        for line in lines(client, frames, batch):
            typer.echo(json.dumps(line))
        if drain and not client.drain(drain):
            logging.getLogger(__name__).warning("%d samples wait for the next run", client.status().waiting)


def lines(client: EdgeClient, frames: Iterator[Frame], batch: int) -> Iterator[dict[str, Any]]:
    """Predict frames, so many in one step, and yield what is written of each."""
    waiting: list[Frame] = []
    for frame in frames:
        if frame.image is None:
            yield _line(frame, None, frame.problem)
            continue
        waiting.append(frame)
        if len(waiting) >= batch:
            yield from _predicted(client, waiting)
            waiting = []
    yield from _predicted(client, waiting)


def _predicted(client: EdgeClient, frames: list[Frame]) -> Iterator[dict[str, Any]]:
    try:
        predictions = client.step([frame.image for frame in frames if frame.image is not None])
    except BadImage as error:
        if len(frames) == 1:
            yield _line(frames[0], None, str(error))
            return
        for frame in frames:  # the bad one alone is left out
            yield from _predicted(client, [frame])
        return
    for frame, prediction in zip(frames, predictions, strict=True):
        yield _line(frame, prediction, None)


def _line(frame: Frame, prediction: EdgePrediction | None, problem: str | None) -> dict[str, Any]:
    said = {"frame": frame.name, "taken_at": round(frame.taken_at, 3)}
    return {**said, **prediction.plain()} if prediction else {**said, "error": problem}


@app.command()
def status(folder: FolderOption = Path("normstream-edge"), as_json: AsJson = False) -> None:
    """Show how the edge on a folder is doing: version, age, sent and excluded, bytes, spool, latency."""
    place = Folder(folder) if folder.is_dir() else None
    found = Status.kept(place) if place else None
    if place is None or found is None:
        raise InvalidArgument(f"no edge client has run on the folder {folder}")
    running = place.in_use()
    if as_json:
        typer.echo(json.dumps({**found.plain(), "running": running}))
    else:
        terminal().print(_grid(found, running))


def _grid(found: Status, running: bool) -> Table:
    counters = found.counters
    excluded = ", ".join(f"{count:,} {reason}" for reason, count in counters.excluded.items() if count)
    age_s = None if found.version_created_at is None else time.time() - found.version_created_at
    latency = ", ".join(f"{value:.1f} ms ({name})" for name, value in found.latency_ms.items())
    rows = {
        "edge": f"{found.edge} ({'running' if running else 'not running'})",
        "server": found.server,
        "heard": _ago(None if found.last_contact_at is None else time.time() - found.last_contact_at),
        "problem": found.problem or "none",
        "model": found.model,
        "version": "the model's own" if found.version is None else f"{found.version}, made {_ago(age_s)}",
        "updates": f"{counters.updates:,} in use, {counters.rolled_back:,} rolled back, {counters.rejected:,} refused",
        "images": f"{counters.seen:,}, of which {counters.uploaded:,} uploaded, {counters.unwanted:,} refused",
        "excluded": excluded or "none",
        "adapted": f"by itself, to {counters.taken_in:,} images" if counters.taken_in else "not by itself",
        "bytes": f"{counters.bytes_up:,} up, {counters.bytes_down:,} down",
        "spool": f"{found.waiting:,} samples, {found.waiting_bytes:,} bytes",
        "latency": latency or "-",
    }
    grid = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        grid.add_row(name, text)
    return grid


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"


@app.command()
def bench(
    folder: Annotated[
        Path,
        typer.Option("--folder", metavar="DIR", help="An edge's folder, for its model; or that of a package."),
    ] = Path("normstream-edge"),
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each turn.")] = 5.0,
    turns: Annotated[int, typer.Option(min=1, help="Of each contestant.")] = 5,
    batch: Annotated[int, typer.Option(min=1, max=64, help="Images in one forward pass.")] = 1,
    update_every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Between updates.")] = 30.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Of a forward pass.", show_default="all cores")] = None,
    local: Annotated[
        Local, typer.Option(help="The edge adapts to its own images; auto is ema for models with batch norms.")
    ] = Local.AUTO,
    as_json: AsJson = False,
) -> None:
    """Compare images per second with those of the plain fused ONNX session, in turns; needs no server."""
    result = benchmark.measure(
        _package(folder),
        seconds=seconds,
        turns=turns,
        batch=batch,
        update_every_s=update_every,
        options=Options(threads=threads, local=_CHOICES[local]),
    )
    if as_json:
        typer.echo(json.dumps(result.plain()))
        return
    table = Table(box=None, pad_edge=False, header_style="bold", caption=result.caption(), caption_justify="left")
    for name in ("", "images/s", "of plain"):
        table.add_column(name, justify="left" if not name else "right")
    for row in result.rows:
        table.add_row(row.name, f"{row.images_per_s:.1f}", f"{row.share:.3f}")
    terminal().print(table)


def _package(folder: Path) -> Package:
    if (folder / "manifest.json").exists():
        return Package.open(folder)
    identity = Folder(folder).identity() if folder.is_dir() else None
    if identity is None or identity.fingerprint is None:
        raise BadPackage(
            f"there is no model in the folder {folder}; run the edge once, or name the folder of a package"
        )
    return Package.cached(Folder(folder).packages, identity.fingerprint)


def _recipe(text: str) -> Any:
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"it begins like JSON and is none: {error}", param_hint="--recipe") from error


def _log_to_stderr() -> None:
    handler = RichHandler(console=terminal(stderr=True), show_path=False, markup=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _leave(*_: object) -> None:
    raise SystemExit(0)


def main() -> None:
    """Run the command line."""
    try:
        app()
    except (NormstreamError, SourceError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise SystemExit(0) from None  # the reader of the pipe has gone
        typer.echo(f"normstream-edge: {' '.join(str(error).split())}", err=True)
        raise SystemExit(1) from error
