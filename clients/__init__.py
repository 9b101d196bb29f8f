"""The Python client of Normstream: httpx and numpy, nothing of the server.

>>> from normstream.clients import Client
>>> with Client("http://127.0.0.1:8000") as client:  # doctest: +SKIP
...     client.create_stream("gate-3")
...     prediction = client.predict("gate-3", ["zebra.jpg"])
"""

from normstream.clients.answers import (
    ClassScore,
    ImagePrediction,
    Method,
    Methods,
    Model,
    Models,
    NormLayer,
    Parameter,
    Prediction,
    Preprocessing,
    Recipes,
    Snapshot,
    Stream,
    StreamEvent,
    Update,
)
from normstream.clients.async_client import AsyncClient
from normstream.clients.client import Client
from normstream.clients.edge_answers import Edge, EdgeReport, EdgeSamples
from normstream.clients.errors import (
    ApiError,
    BadRequest,
    Conflict,
    ConnectionFailed,
    FieldProblem,
    InvalidArgument,
    InvalidInput,
    NormstreamError,
    NotFound,
    Overloaded,
    TimedOut,
    TooLarge,
    Unavailable,
    UnexpectedAnswer,
)
from normstream.clients.label_answers import (
    ClassCount,
    Labelling,
    Learning,
    LearningStep,
    RecentScores,
    StreamLabels,
    StreamScores,
)
from normstream.clients.labels import Label

__all__ = [
    "ApiError",
    "AsyncClient",
    "BadRequest",
    "ClassCount",
    "ClassScore",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "Edge",
    "EdgeReport",
    "EdgeSamples",
    "FieldProblem",
    "ImagePrediction",
    "InvalidArgument",
    "InvalidInput",
    "Label",
    "Labelling",
    "Learning",
    "LearningStep",
    "Method",
    "Methods",
    "Model",
    "Models",
    "NormLayer",
    "NormstreamError",
    "NotFound",
    "Overloaded",
    "Parameter",
    "Prediction",
    "Preprocessing",
    "RecentScores",
    "Recipes",
    "Snapshot",
    "Stream",
    "StreamEvent",
    "StreamLabels",
    "StreamScores",
    "TimedOut",
    "TooLarge",
    "Unavailable",
    "UnexpectedAnswer",
    "Update",
]
