"""`normstream bench edge`: an edge and its server on this machine, with labelled photographs between them.

Real parts: `normstream serve` on loopback, its Redis, and edge clients that upload, wait and swap. Only time is ours:
after each batch of frames the edge's samples are sent, learnt from and answered before the next batch, so that errors
hardly depend on how fast the machine is (a batch of samples that does not fill within a minute is learnt from as it
is). How long that took is told as staleness.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from normstream.adaptation import Preprocessing
from normstream.adaptation.bench import corruptions as known
from normstream.adaptation.bench import datasets
from normstream.adaptation.bench.cache import Cache
from normstream.adaptation.bench.errors import BenchError, given_by
from normstream.clients import Client
from normstream.clients.demo.server import running
from normstream.clients.edge import EdgeClient, Options
from normstream.clients.edge.local import EMA
from normstream.clients.edge.selection import Criteria
from normstream.clients.errors import NormstreamError

CORRUPTIONS = "gaussian_noise,fog,motion_blur,contrast"
SEVERITIES = (3, 5)
CHOSEN, EVERYTHING = Criteria(), Criteria(unreliable=10, uninformative=0, redundant=10)
SETTLE_S = 300.0
POLL_S = 0.05

Frames = NDArray[np.uint8]  # [B, H, W, 3]


@dataclass(slots=True)
class Outcome:
    """What came of one way to run an edge."""

    errors: list[float] = field(default_factory=list)  # in %, of each segment
    seen: int = 0
    uploaded: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    updates: int = 0
    refused: int = 0  # updates that the edge rolled back
    staleness_s: list[float] = field(default_factory=list)  # of each update: from the upload to its use

    @property
    def error(self) -> float:
        """Mean over the segments, in %."""
        return float(np.mean(self.errors))

    @property
    def share(self) -> float:
        """Of the frames that were uploaded, in %."""
        return 100 * self.uploaded / max(1, self.seen)


Predict = Callable[[Frames], NDArray[np.int64]]
Contender = Callable[[Any], Outcome]


def bench_edge(
    *,
    data: Annotated[Path, typer.Option(metavar="PATH", help="Labelled photographs (docs/bench.md).")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where results go.")],
    model: Annotated[str, typer.Option(help="Of the edge.")] = "tf_efficientnet_lite0",
    teacher: Annotated[str, typer.Option(help="Of the cloud.")] = "tf_efficientnet_lite2",
    corruptions: Annotated[str, typer.Option(metavar="A,B,...", help="Which, in this order.")] = CORRUPTIONS,
    severity: Annotated[list[int] | None, typer.Option(min=1, max=5, show_default="3 then 5")] = None,
    batch: Annotated[int, typer.Option(min=1, max=64, help="Frames per step.")] = 16,
    images: Annotated[int | None, typer.Option(min=1, help="Use this many, evenly spaced.", show_default="all")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of corruptions and order.")] = 0,
    contender: Annotated[list[str] | None, typer.Option(help="One of the rows; repeat.", show_default="all")] = None,
) -> None:
    """Measure what a cloud-taught edge gains, and what it costs."""
    try:
        with given_by("--data"):
            source = datasets.find(data)
        hosted = source.host(model)
        with given_by("--data"):
            dataset = source.load(hosted, images)
        names = known.chosen(corruptions)
    except BenchError as error:
        _refuse(error)
    cache = Cache(out / "corrupted")
    segments = {
        f"{name} {level}": cache.corrupted(dataset, name, level, seed, small=source.small, advance=lambda _: None)
        for level in severity or SEVERITIES
        for name in names
    }
    order = np.random.default_rng(seed).permutation(len(dataset.labels))
    stream = [
        (name, _framed(pixels[part], hosted.preprocessing), dataset.labels[part])
        for name, pixels in segments.items()
        for part in (order[start : start + batch] for start in range(0, len(order), batch))
    ]
    # As at a camera of few images a second: each is taken in.
    local = EMA(share=math.inf) if len(hosted.batch_norms) else None
    del hosted  # The server hosts its own.
    settings = {
        "model": model,
        "teacher": teacher,
        "segments": list(segments),
        "images": len(order),
        "batch": batch,
        "seed": seed,
        "taken in by the edge": "every image" if local else "none",
    }
    outcomes: dict[str, Outcome] = {}
    with running(NORMSTREAM_MODELS=f"{model} {teacher}") as server:
        for name, follow in _chosen(_contenders(server.url, model, teacher, local), contender).items():
            try:
                outcomes[name] = follow(track(stream, name, console=Console(stderr=True)))
            except (BenchError, NormstreamError) as error:
                _refuse(error)
            _publish(out, settings, outcomes)
    typer.echo((out / "edge.md").read_text())


def _chosen(contenders: dict[str, Contender], names: list[str] | None) -> dict[str, Contender]:
    for name in names or ():
        if name not in contenders:
            _refuse(BenchError(f"--contender: there is no {name!r}; there are {', '.join(map(repr, contenders))}"))
    return {name: contenders[name] for name in names or contenders}


def _refuse(error: Exception) -> NoReturn:
    typer.echo(f"normstream bench edge: {' '.join(str(error).split())}", err=True)
    raise typer.Exit(2) from None


Stream = Iterable[tuple[str, Frames, NDArray[np.int64]]]


def _framed(pixels: Frames, preprocessing: Preprocessing) -> Frames:
    """Frames of which the model's own preprocessing takes just these pixels: the crop, in a border that it cuts off."""
    border = (int(pixels.shape[1] / preprocessing.crop_pct) - pixels.shape[1]) // 2
    return np.pad(pixels, ((0, 0), (border, border), (border, border), (0, 0)), mode="edge")


def _contenders(url: str, model: str, teacher: str, local: EMA | None) -> dict[str, Contender]:
    taught = {"update": {"name": "cema", "teacher": teacher}}

    def edge(name: str, recipe: Any, local: EMA | None, criteria: Criteria = CHOSEN) -> Contender:
        options = Options(linger_s=0.0, local=local, criteria=criteria)
        return lambda stream: _edge(url, name, model, recipe, options, stream)

    contenders = {
        "no adaptation": edge("none", "source", None),
        "cema": edge("cema", taught, local),
        "cema, everything uploaded": edge("all", taught, local, EVERYTHING),
        "tent at the server": lambda stream: _server(url, model, stream),
    }
    if local is None:
        return contenders
    return contenders | {
        "the edge alone": edge("alone", "source", local),
        "the cloud alone": edge("cloud", taught, None),
        "the cloud alone, everything uploaded": edge("cloud-all", taught, None, EVERYTHING),
    }


def _edge(url: str, name: str, model: str, recipe: Any, options: Options, stream: Stream) -> Outcome:
    outcome = Outcome()
    with (
        tempfile.TemporaryDirectory() as folder,
        EdgeClient(url, name, folder, model=model, recipe=recipe, options=options) as client,
        Client(url, transport=httpx.HTTPTransport()) as operator,
    ):

        def predict(frames: Frames) -> NDArray[np.int64]:
            return np.array([each.top[0].index for each in client.step(list(frames))])

        def settle() -> None:
            if recipe == "source":
                return
            begun, before = time.monotonic(), client.status().counters
            if not client.drain(SETTLE_S):
                raise BenchError("the server takes no samples")
            while not _settled(client, operator, name):
                if time.monotonic() > begun + SETTLE_S:
                    raise BenchError(f"the server did not learn within {SETTLE_S:.0f} s")
                time.sleep(POLL_S)
            if client.status().counters.updates > before.updates:
                outcome.staleness_s.append(time.monotonic() - begun)

        _follow(outcome, stream, predict, settle)
        counters = client.status().counters
        outcome.seen, outcome.uploaded = counters.seen, counters.uploaded
        outcome.bytes_up, outcome.bytes_down = counters.bytes_up, counters.bytes_down
        outcome.updates, outcome.refused = counters.updates, counters.rolled_back
    return outcome


def _settled(client: EdgeClient, operator: Client, name: str) -> bool:
    """Whether nothing is left to learn from, and the edge has tried what came of it."""
    edge = operator.edge(name)
    batch: int = edge.recipe["update"]["batch"]
    return edge.samples.pending < batch and client.tried == edge.tag


def _server(url: str, model: str, stream: Stream) -> Outcome:
    """Every frame goes to the server, which answers and adapts."""
    outcome = Outcome()
    with Client(url, transport=httpx.HTTPTransport()) as client:
        client.create_stream("tent", model=model, recipe="tent")

        def predict(frames: Frames) -> NDArray[np.int64]:
            outcome.seen += len(frames)
            outcome.uploaded += len(frames)
            outcome.bytes_up += frames.nbytes
            return np.array([each.top[0].index for each in client.predict("tent", frames).predictions])

        _follow(outcome, stream, predict, lambda: None)
    return outcome


def _follow(outcome: Outcome, stream: Stream, predict: Predict, settle: Callable[[], None]) -> None:
    wrong: dict[str, list[bool]] = {}
    for name, frames, labels in stream:
        wrong.setdefault(name, []).extend((predict(frames) != labels).tolist())
        settle()
    outcome.errors = [100 * float(np.mean(each)) for each in wrong.values()]


def _publish(out: Path, settings: dict[str, Any], outcomes: dict[str, Outcome]) -> None:
    told = {name: asdict(each) | {"error": each.error, "share": each.share} for name, each in outcomes.items()}
    (out / "edge.json").write_text(json.dumps({"settings": settings, "outcomes": told}, indent=2))
    lines = [f"- {name}: {value}" for name, value in settings.items()]
    (out / "edge.md").write_text("\n".join([*lines, "", *_table(settings["segments"], outcomes), ""]))


def _table(segments: Sequence[str], outcomes: dict[str, Outcome]) -> list[str]:
    header = ["", "error (%)", "uploaded (%)", "MB up", "MB down", "updates", "rolled back", "staleness (s)", *segments]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for name, each in outcomes.items():
        staleness = f"{np.median(each.staleness_s):.1f}" if each.staleness_s else "-"
        cost = [f"{each.bytes_up / 1e6:.1f}", f"{each.bytes_down / 1e6:.1f}", str(each.updates), str(each.refused)]
        errors = [f"{error:.1f}" for error in each.errors]
        rows.append([name, f"{each.error:.1f}", f"{each.share:.0f}", *cost, staleness, *errors])
    return [f"| {' | '.join(row)} |" for row in rows]
