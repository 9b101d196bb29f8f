"""`normstream calibrate`: what some recipes need to know of a model's source data. Found through an entry point."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from normstream.adaptation import HostedModel, ModelSpec
    from normstream.service.settings import Settings

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class CalibrateError(Exception):
    """What was asked for cannot be calibrated; the message says why."""


def calibrate(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="As in `normstream serve --model`, or the name of one in its settings."),
    ],
    *,
    data: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Images of the kind that the model was trained on; sub-folders count."),
    ],
    images: Annotated[int, typer.Option(min=1, help="Use as many, evenly spaced, or all if there are fewer.")] = 512,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The server's data folder, as in `normstream serve --data`.",
            show_default="NORMSTREAM_DATA or normstream-data",
        ),
    ] = None,
) -> None:
    """Measure what some recipes need to know of a model's source data; a server finds it when it next starts."""
    # Imported here: the command line must start without torch.
    from pydantic import ValidationError  # noqa: PLC0415

    from normstream.adaptation import HostingError  # noqa: PLC0415
    from normstream.adaptation.recipe import explain  # noqa: PLC0415
    from normstream.service.errors import Problem  # noqa: PLC0415
    from normstream.service.settings import Settings  # noqa: PLC0415

    try:
        files = _chosen(data, images)
        settings = Settings() if data_dir is None else Settings(data=data_dir)
        path = _measure(_spec(model, settings), files, settings)
    except ValidationError as error:
        _refuse(explain(error))
    except (CalibrateError, HostingError) as error:
        _refuse(str(error))
    except Problem as problem:
        _refuse(problem.detail)
    except OSError as error:
        _refuse(f"{error.strerror or error}: {str(error.filename)!r}" if error.filename else str(error))
    else:
        typer.echo(f"Measured {len(files)} images; wrote {path}. Start the server again to use it.")


def _refuse(reason: str) -> NoReturn:
    typer.echo(f"normstream calibrate: {' '.join(reason.split())}", err=True)
    raise typer.Exit(2) from None


def _chosen(folder: Path, count: int) -> list[Path]:
    """`count` of the folder's images, evenly spaced: sorted sub-folders keep all their classes."""
    if not folder.is_dir():
        raise CalibrateError(f"--data: there is no folder {str(folder)!r}")
    walk = os.walk(folder, onerror=_raise)  # Globbing would pass over folders that cannot be read.
    found = sorted(Path(where, name) for where, _, names in walk for name in names if _is_image(name))
    if not found:
        raise CalibrateError(f"--data: no images ({', '.join(SUFFIXES)}) in {str(folder)!r} or below it")
    count = min(count, len(found))
    return [found[index * len(found) // count] for index in range(count)]


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _raise(error: OSError) -> None:
    raise error


def _spec(model: str, settings: "Settings") -> "ModelSpec":
    """One of the settings' models by its name, or any other."""
    from normstream.adaptation import ModelSpec  # noqa: PLC0415

    hosted = {spec.title: spec for spec in settings.models}
    return hosted.get(model) or ModelSpec.parse(model)


def _measure(spec: "ModelSpec", files: Sequence[Path], settings: "Settings") -> Path:
    """Host the model, show it the images, and keep what was seen."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import track  # noqa: PLC0415

    from normstream.adaptation import load_model  # noqa: PLC0415
    from normstream.adaptation.calibration import calibrate, save, spread  # noqa: PLC0415

    hosted = load_model(spec, settings.device)
    batches = [files[each] for each in spread(len(files))]
    shown = track(batches, f"calibrating {hosted.name}", console=Console(stderr=True))
    return save(calibrate(hosted, (_batch(batch, hosted, settings) for batch in shown)), settings.data)


def _batch(files: Sequence[Path], hosted: "HostedModel", settings: "Settings") -> "Tensor":
    """The images as the server itself would prepare them."""
    import torch  # noqa: PLC0415

    from normstream.service.errors import Problem  # noqa: PLC0415
    from normstream.service.images import Images, prepare  # noqa: PLC0415

    rows = []
    for file in files:
        try:
            rows.append(prepare(Images(files=(file.read_bytes(),)), hosted.preprocessing, settings.max_pixels))
        except Problem as problem:
            raise CalibrateError(f"--data: {str(file)!r}: {problem.detail.removeprefix('images.0: ')}") from None
    return torch.cat(rows)
