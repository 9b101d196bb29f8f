"""Test-time adaptation of normalisation layers, as a library: no HTTP, no Redis, no clock.

The network is frozen and shared; a stream is a small record of tensors; a method is a pure step from (state, batch) to
(output, state).
"""

from .torchvision_ops import make_importable

make_importable()  # Before timm, which imports torchvision.

from .catalogue import Method, catalogue
from .codec import ForeignStateError, StateError, admit, decode, encode
from .drift import drift
from .edge_parameters import edge_parameters
from .guard import Alarm
from .hosting import HostedModel, HostingError
from .models import ModelSpec, labels, load_model
from .preprocessing import Preprocessing
from .recipe import PRESETS, Recipe
from .samples import Sample, SampleError
from .state import StreamState, initial_state
from .step import Request, Result, step
from .teaching import Taught, TeachingReport, teach, teaching
from .updating import Report

__all__ = [
    "PRESETS",
    "Alarm",
    "ForeignStateError",
    "HostedModel",
    "HostingError",
    "Method",
    "ModelSpec",
    "Preprocessing",
    "Recipe",
    "Report",
    "Request",
    "Result",
    "Sample",
    "SampleError",
    "StateError",
    "StreamState",
    "Taught",
    "TeachingReport",
    "admit",
    "catalogue",
    "decode",
    "drift",
    "edge_parameters",
    "encode",
    "initial_state",
    "labels",
    "load_model",
    "step",
    "teach",
    "teaching",
]
