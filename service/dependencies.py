"""What the routes are given: made once by the application, found on its state.

All are coroutines: FastAPI runs plain functions on threads, where the requests of a stream would overtake one another.
"""

from typing import Annotated

from fastapi import Depends, Request

from normstream.service.admission import Admission
from normstream.service.edges import Edges
from normstream.service.labelling import Labeller
from normstream.service.packages import Packages
from normstream.service.predicting import Predictor
from normstream.service.settings import Settings
from normstream.service.streams import Streams


async def _streams(request: Request) -> Streams:
    streams: Streams = request.app.state.streams
    return streams


async def _predictor(request: Request) -> Predictor:
    predictor: Predictor = request.app.state.predictor
    return predictor


async def _labeller(request: Request) -> Labeller:
    labeller: Labeller = request.app.state.labeller
    return labeller


async def _edges(request: Request) -> Edges:
    edges: Edges = request.app.state.edges
    return edges


async def _packages(request: Request) -> Packages:
    packages: Packages = request.app.state.packages
    return packages


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _admission(request: Request) -> Admission:
    admission: Admission = request.app.state.admission
    return admission


TheStreams = Annotated[Streams, Depends(_streams)]
ThePredictor = Annotated[Predictor, Depends(_predictor)]
TheLabeller = Annotated[Labeller, Depends(_labeller)]
TheEdges = Annotated[Edges, Depends(_edges)]
ThePackages = Annotated[Packages, Depends(_packages)]
TheSettings = Annotated[Settings, Depends(_settings)]
TheAdmission = Annotated[Admission, Depends(_admission)]
