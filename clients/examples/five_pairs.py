"""A stream that meets five pairs of classes, one pair after the other, and learns them from labels.

CIFAR-10 ──images with labels──> stream ──predictions of test images──> accuracy on each pair so far

Run it with `python -m normstream.clients.examples.five_pairs --data FOLDER`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from normstream.clients.cli.options import RecipeText, recipe_of
from normstream.clients.client import Client
from normstream.clients.demo.picture import check_picture
from normstream.clients.demo.server import local_server
from normstream.clients.errors import NormstreamError
from normstream.clients.examples.accuracies import Accuracies, table
from normstream.clients.examples.cifar import Pictures, read

MODEL = "architecture=cifar_resnet10,seed=0,classes=10"  # untrained: all that it knows it has learnt here
RECIPE = """{
    "norm": {"name": "source"},
    "learn": {
        "head": "new", "learns": "all", "norm": {"name": "adab2n"}, "method": {"name": "er_ace"},
        "replay": {"keep": "images", "encoding": "png", "capacity": 500, "batch": 10},
        "batch": 10, "augment": true, "classes_per_task": 2
    }
}"""
SENT = 20  # images of a request: two lessons, which no server takes long for

Data = Annotated[Path, typer.Option(metavar="FOLDER", file_okay=False, help="CIFAR-10 as train.npz and test.npz.")]
Images = Annotated[int | None, typer.Option(min=1, help="Of each pair, to learn from; all if left out.")]
ServerUrl = Annotated[str | None, typer.Option("--url", help="A server to learn on, in place of one of its own.")]
TestImages = Annotated[int | None, typer.Option(min=1, help="Of each pair, to predict; all if left out.")]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Draw the accuracies.")]


def five_pairs(
    *,
    data: Data,
    url: ServerUrl = None,
    recipe: RecipeText = RECIPE,
    images: Images = None,
    test_images: TestImages = None,
    plot: Plot = None,
) -> None:
    """Let a stream learn five pairs of classes, one pair after the other."""
    draw = _drawing(plot) if plot else None
    course, exams = read(data / "train.npz", images), read(data / "test.npz", test_images)
    console = Console()
    with _client(url, console) as client:
        stream = client.create_stream(recipe=recipe_of(recipe)).id
        accuracies = learn_all(client, stream, course, exams, console)
        console.print(table(accuracies))
        console.print(summary(client, stream), soft_wrap=True, highlight=False)
    if draw:
        draw(accuracies)
        console.print(f"Picture: {plot}", soft_wrap=True, highlight=False)


def learn_all(
    client: Client, stream: str, course: Sequence[Pictures], exams: Sequence[Pictures], console: Console
) -> Accuracies:
    """Return the accuracies on all pairs so far after each of them."""
    repeated = sum(len(exam) * (len(exams) - number) for number, exam in enumerate(exams))
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    accuracies = []
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=sum(map(len, course)) + repeated)
        for number, lesson in enumerate(course):
            bar.update(task, description=f"pair {number + 1}")
            for done in learn(client, stream, lesson):
                bar.advance(task, done)
            row = []
            for exam in exams[: number + 1]:
                row.append(accuracy(client, stream, exam))
                bar.advance(task, len(exam))
            accuracies.append(row)
    return accuracies


def learn(client: Client, stream: str, lesson: Pictures) -> Iterator[int]:
    """Send images with their labels; yield how many, request by request."""
    for batch in lesson.batches(SENT):
        client.label_images(stream, batch.files, batch.classes)
        yield len(batch)


def accuracy(client: Client, stream: str, exam: Pictures) -> float:
    """Return the share of images whose class is told right among all that the stream knows."""
    right = 0
    for batch in exam.batches(SENT):
        answer = client.predict(stream, batch.files, adapt=False, top_k=1)
        told = [image.top[0].label for image in answer.predictions]
        right += sum(one == other for one, other in zip(told, batch.classes, strict=True))
    return right / len(exam)


def summary(client: Client, stream: str) -> str:
    """Return what the server counted: it predicts each image before it learns from its label, once it knows a class."""
    told = client.scores(stream)
    lines = [
        f"Stream {stream}: {told.scores.labelled} labels; asked before it learnt from them, it was right about "
        f"{told.scores.correct} of {told.scores.scored}."
    ]
    if told.learning:
        memory = f"its memory holds {told.learning.kept} images in {told.learning.kept_bytes / 1e6:.1f} MB"
        lines.append(f"It took {told.learning.lessons} lessons; {memory}.")
    return "\n".join(lines)


def _drawing(path: Path) -> Callable[[Accuracies], None]:
    """Return what draws the picture, or refuse now what would fail only at the end."""
    check_picture(path)
    # Only here: an example without a picture needs no matplotlib.
    from normstream.clients.examples.curves import draw  # noqa: PLC0415

    return partial(draw, path=path)


@contextmanager
def _client(url: str | None, console: Console) -> Iterator[Client]:
    if url:
        with Client(url) as client:
            yield client
        return
    with local_server(console, NORMSTREAM_MODELS=MODEL) as server, server.client() as client:
        yield client


def main() -> None:
    """Run the example; what people can mend is one line."""
    try:
        typer.run(five_pairs)
    except (NormstreamError, OSError) as error:
        typer.echo(f"five_pairs: {error}", err=True)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
