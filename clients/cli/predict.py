"""The command `normstream stream predict`: many images, a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from normstream.clients.answers import ClassScore, ImagePrediction, Prediction
from normstream.clients.cli.batches import in_batches
from normstream.clients.cli.options import AsJson, StreamId, Url
from normstream.clients.cli.output import FilePrediction, FilePredictions, show
from normstream.clients.client import Client

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

Paths = Annotated[
    list[Path], typer.Argument(metavar="FILES_OR_FOLDERS", exists=True, help="Images, or folders of images.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per request; the stream adapts once to each.")]
Adapt = Annotated[bool, typer.Option("--adapt/--no-adapt", help="Whether the stream adapts to the images.")]
TopK = Annotated[int, typer.Option(min=1, max=100, help="Classes per image.")]
Output = Annotated[
    Path | None,
    typer.Option(metavar="FILE.npy", dir_okay=False, help="Save all probabilities; the labels are not known then."),
]


def predict(
    stream: StreamId,
    paths: Paths,
    *,
    batch_size: BatchSize = 16,
    adapt: Adapt = True,
    top_k: TopK = 5,
    output: Output = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Predict images; the stream adapts to them, batch after batch."""
    files = image_files(paths)
    _check_folder(output)
    with Client(url) as client:
        ask = partial(client.predict, stream, adapt=adapt, top_k=top_k, output="probs" if output else "topk")
        answers = list(in_batches(ask, files, batch_size, "Predicting", "images had been predicted"))
    if output:
        _save(output, answers)
    show(_summary(files, answers, top_k), as_json)


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files among `paths`, and the images in the folders among them, in order of name."""
    found = [file for path in paths for file in (_images_in(path) if path.is_dir() else [path])]
    if not found:
        raise typer.BadParameter(f"there is no image in the folders; images end in {', '.join(SUFFIXES)}")
    return found


def _images_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


def _check_folder(output: Path | None) -> None:
    """Refuse before the stream has adapted to anything, not after."""
    if output and not output.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {output.parent}", param_hint="--output")


def _save(path: Path, answers: Sequence[Prediction]) -> None:
    values = [answer.values for answer in answers if answer.values is not None]
    with path.open("wb") as file:
        np.save(file, np.concatenate(values), allow_pickle=False)


def _summary(files: list[Path], answers: Sequence[Prediction], top_k: int) -> FilePredictions:
    images = [image for answer in answers for image in _images(answer, top_k)]
    last = answers[-1]
    return FilePredictions(
        stream=last.stream,
        step=last.step,
        version=last.version,
        adapted=last.adapted,
        predictions=tuple(
            FilePrediction(str(file), image.entropy, image.top, image.sample)
            for file, image in zip(files, images, strict=True)
        ),
        alarms=tuple(answer.alarm for answer in answers if answer.alarm),
    )


def _images(answer: Prediction, top_k: int) -> Sequence[ImagePrediction]:
    if answer.values is None:
        return answer.predictions
    samples = answer.samples or (None,) * len(answer.values)
    values = answer.values.astype(np.float64)
    return [_ranked(each, sample, top_k) for each, sample in zip(values, samples, strict=True)]


def _ranked(probabilities: NDArray[np.float64], sample: str | None, top_k: int) -> ImagePrediction:
    """Return the likeliest of all classes, which go by number where no label came with them."""
    likeliest = np.argsort(-probabilities, kind="stable")[:top_k].tolist()
    present = probabilities[probabilities > 0]
    return ImagePrediction(
        entropy=float(-np.sum(present * np.log(present))),
        top=tuple(ClassScore(i, f"class {i}", float(probabilities[i])) for i in likeliest),
        sample=sample,
    )
