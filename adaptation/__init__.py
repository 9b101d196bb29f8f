"""Test-time adaptation of normalisation layers, as a library: no HTTP, no Redis, no clock.

The network is frozen and shared; a stream is a small record of tensors; a method is a pure step from (state, batch) to
(output, state).
"""

from .torchvision_ops import make_importable

make_importable()  # Before timm, which imports torchvision.

from .catalogue import Method, catalogue
from .codec import ForeignStateError, StateError, admit, decode, decode_learnt, encode, encode_learnt
from .continual.learner import LearningReport
from .continual.learning import Learning
from .continual.unlabelled import pack, pixels_of, unpack
from .drift import drift
from .edge_parameters import edge_parameters
from .guard import Alarm
from .hosting import HostedModel, HostingError
from .learnt import Learnt
from .learnt_model import NoClassYet
from .lessons import Outcome, learn
from .models import ModelSpec, class_names, labels, load_model
from .preprocessing import Preprocessing
from .recipe import PRESETS, Recipe
from .samples import Sample, SampleError
from .state import StreamState, initial_state, names_of
from .step import Request, Result, step
from .teaching import Taught, TeachingReport, teach, teaching
from .updating import Report

__all__ = [
    "PRESETS",
    "Alarm",
    "ForeignStateError",
    "HostedModel",
    "HostingError",
    "Learning",
    "LearningReport",
    "Learnt",
    "Method",
    "ModelSpec",
    "NoClassYet",
    "Outcome",
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
    "class_names",
    "decode",
    "decode_learnt",
    "drift",
    "edge_parameters",
    "encode",
    "encode_learnt",
    "initial_state",
    "labels",
    "learn",
    "load_model",
    "names_of",
    "pack",
    "pixels_of",
    "step",
    "teach",
    "teaching",
    "unpack",
]
