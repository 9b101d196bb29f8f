"""Calibration on clean images, for the recipes that need it."""

from pathlib import Path

from rich.console import Console
from rich.progress import track

from normstream.adaptation import HostedModel, HostingError
from normstream.adaptation.bench import datasets
from normstream.adaptation.bench.errors import BenchError
from normstream.adaptation.bench.run import normalised
from normstream.adaptation.calibration import calibrate, spread

IMAGES = 512  # at most, as in `normstream calibrate`


def calibrate_on(hosted: HostedModel, path: Path) -> str:
    """Calibrate the model on images that lie there; what they are, as the settings have it.

    Raises:
        BenchError: when there are none, or the network makes nothing finite of them.
    """
    clean = datasets.find(path).load(hosted, IMAGES)
    screen = Console(stderr=True)
    # In a log, the bar would part what is wrong, should something be, from its one line.
    batches = track(spread(len(clean.labels)), "calibration", console=screen, disable=not screen.is_interactive)
    try:
        hosted.calibration = calibrate(hosted, (normalised(hosted, clean.pixels[batch]) for batch in batches))
    except HostingError as error:
        raise BenchError(str(error)) from None
    return f"sha256:{clean.digest}"
