"""Make torchvision importable beside a build of torch that its wheel was not made for.

timm needs torchvision's image transforms, never its compiled operators. Where those do not fit the installed torch
(a CPU build of torch beside the registry's torchvision), the import fails since `torchvision::nms` and
`torchvision::qnms` were never declared. Declaring their schemas, and only then, is enough.
"""

import importlib
import sys

import torch

_SCHEMAS = ("nms", "qnms")


def make_importable() -> None:
    """Import torchvision, declaring the schemas it misses when the first try fails."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in _SCHEMAS:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)  # A library that is collected takes its schemas with it.
        importlib.import_module("torchvision")


_KEPT: list[torch.library.Library] = []
