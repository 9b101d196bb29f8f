"""The commands about labels: `normstream stream label` and `normstream stream scores`."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from normstream.clients.cli.batches import in_batches
from normstream.clients.cli.label_output import labelling_view, scores_view
from normstream.clients.cli.options import AsJson, StreamId, Url
from normstream.clients.cli.output import show
from normstream.clients.cli.predict import image_files
from normstream.clients.client import Client
from normstream.clients.label_answers import Labelling, Learning
from normstream.clients.labels import Label

SAMPLE = re.compile(r"[0-9a-f]{16}-\d+")

Name = Annotated[str | None, typer.Argument(metavar="LABEL", help="The class that they show.")]
Shown = Annotated[
    list[str] | None,
    typer.Argument(metavar="SAMPLES_OR_FILES", help="Ids of predicted images; images, or folders of images."),
]
From = Annotated[
    typer.FileText | None,
    typer.Option(
        "--from",
        metavar="FILE.csv",
        encoding="utf-8-sig",
        help="Lines of SAMPLE_OR_FILE,LABEL in their place; - is stdin.",
    ),
]
CountOnly = Annotated[bool, typer.Option("--count-only", help="Count the labels, and teach nothing.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Labels per request.")]


def label(
    stream: StreamId,
    name: Name = None,
    shown: Shown = None,
    *,
    source: From = None,
    count_only: CountOnly = False,
    batch_size: BatchSize = 20,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Say what images show; a stream whose recipe learns from labels learns from them."""
    labels = _labels(name, shown or [], source)
    with Client(url) as client:
        ask = partial(client.label, stream, learn=not count_only)
        answers = list(in_batches(ask, labels, batch_size, "Labelling", "labels had been sent"))
    show(_together(answers), as_json, labelling_view)


def scores(stream: StreamId, url: Url = None, as_json: AsJson = False) -> None:
    """Show how a stream has done by the labels that came, and what it has learnt."""
    with Client(url) as client:
        show(client.scores(stream), as_json, scores_view)


def _labels(name: str | None, shown: Sequence[str], source: Iterable[str] | None) -> list[Label]:
    if (source is None) == (name is None):
        raise typer.BadParameter("give LABEL with samples or files, or --from", param_hint="LABEL")
    if source is not None:
        return _listed(source)
    if not shown:
        raise typer.BadParameter(f"nothing is labelled {name!r}; give ids of samples, or files")
    return [each for item in shown for each in _found(item, name)]


def _listed(source: Iterable[str]) -> list[Label]:
    """Read lines of a sample or file, and its label."""
    rows = csv.reader(source)
    labels: list[Label] = []
    try:
        for row in rows:
            if len(row) not in {0, 2}:  # a blank line has none
                raise typer.BadParameter(
                    f"line {rows.line_num} has {len(row)} fields; give SAMPLE_OR_FILE,LABEL", param_hint="--from"
                )
            labels += _found(*row) if row else ()
    except csv.Error as error:
        raise typer.BadParameter(f"line {rows.line_num} is no CSV: {error}", param_hint="--from") from error
    except UnicodeDecodeError as error:
        message = f"the file is no UTF-8 ({error.reason}); save it as such"
        raise typer.BadParameter(message, param_hint="--from") from error
    if not labels:
        raise typer.BadParameter("there is no line; give lines of SAMPLE_OR_FILE,LABEL", param_hint="--from")
    return labels


def _found(item: str, name: str | None) -> Iterator[Label]:
    """Yield the labels of a sample, of a file, or of the images in a folder."""
    path = Path(item)
    if item and path.exists():  # an empty path is the working directory
        yield from (Label(image=file, label=name) for file in image_files([path]))
    elif SAMPLE.fullmatch(item):
        yield Label(sample=item, label=name)
    else:
        raise typer.BadParameter(f"{item!r} is neither a file nor a sample's id, as `stream predict` prints them")


def _together(answers: Sequence[Labelling]) -> Labelling:
    """Return one answer to all requests: what the last one says, and how much it was in all."""
    last = answers[-1]
    return replace(
        last,
        labelled=sum(answer.labelled for answer in answers),
        duplicates=sum(answer.duplicates for answer in answers),
        unlearnt=sum(answer.unlearnt for answer in answers),
        learning=last.learning and _all_learnt([answer.learning for answer in answers if answer.learning]),
    )


def _all_learnt(lessons: Sequence[Learning]) -> Learning:
    return replace(
        lessons[-1],
        steps=tuple(step for lesson in lessons for step in lesson.steps),
        new_classes=tuple(name for lesson in lessons for name in lesson.new_classes),
    )
