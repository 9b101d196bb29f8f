"""The edge: a hosted model's forward pass on a camera box, by ONNX Runtime, with parameters that a server adapts.

Nothing here imports torch, nor the rest of Normstream but its client.
"""

from importlib.util import find_spec

if find_spec("onnxruntime") is None or find_spec("PIL") is None:
    raise ImportError("the edge client needs ONNX Runtime and Pillow; pip install 'normstream[edge]'")

from normstream.clients.edge.client import EdgeClient
from normstream.clients.edge.options import Options
from normstream.clients.edge.prediction import EdgePrediction

__all__ = ["EdgeClient", "EdgePrediction", "Options"]
