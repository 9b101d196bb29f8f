"""From a hosted network to an ONNX graph in which each normalisation layer is one marked node.

torch's exporter folds normalisation into its neighbours where it can. A node that it does not know stays whole, and
keeps the layer's path, until `export_graph` puts ONNX operators and named tensors in its place.
"""

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from onnx import ModelProto
from onnx.compose import add_prefix_graph
from torch import Tensor, nn
from torch.nn import functional

from .hosting import HostedModel, HostingError
from .layers import NormLayer
from .packing import Packed
from .served import Served

DOMAIN = "normstream"  # of marked nodes
OPSET = 18


def trace(hosted: HostedModel) -> ModelProto:
    """The network with inputs `images` [B, C, H, W], outputs `logits` [B, classes], and marked normalisation layers.

    Raises:
        HostingError: when the network cannot be exported; it names the layer and the operator where they are known.
    """
    network = _marked(hosted)
    entered = _watch(network)
    images = torch.zeros(2, *hosted.preprocessing.input_size, device=hosted.device)
    program: torch.export.ExportedProgram | None = None
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's own, about its own future
            shapes = ({0: torch.export.Dim("batch")},)
            program = torch.export.export(network, (images,), dynamic_shapes=shapes, strict=False)
            onnx = torch.onnx.export(
                program, input_names=["images"], output_names=["logits"], opset_version=OPSET, verbose=False
            )
            assert onnx is not None
            marked: ModelProto = onnx.model_proto
    except Exception as error:
        # Exporters raise errors of many kinds: untranslatable operators, control flow, shapes that fix the batch.
        reason = _innermost(error)
        where = (entered or _layers_named_in(reason, program) or [""])[-1]
        layer = f" at layer {where!r}" if where else ""
        raise HostingError(f"{hosted.name!r} cannot be exported to ONNX{layer}: {reason}") from error
    return _stripped(marked)


def _marked(hosted: HostedModel) -> nn.Module:
    """A copy that shares the weights: without what hosting changed, and with marks for the served layers."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in hosted.network.state_dict(keep_vars=True).values()}
    for module in hosted.network.modules():
        if isinstance(own := module.__dict__.get("forward"), Served | Packed):
            shared[id(own)] = own
    network: nn.Module = copy.deepcopy(hosted.network, shared)
    modules = dict(network.named_modules())
    for path, module in modules.items():
        if isinstance(module.__dict__.get("forward"), Served | Packed):
            del module.forward
        if hosted.network.get_submodule(path) is hosted.classifier:
            module._forward_pre_hooks.clear()  # the host's, which keeps the features
    for layer in hosted.layers:
        modules[layer.path].forward = _mark(layer, modules[layer.path])
    return network


def _watch(network: nn.Module) -> list[str]:
    """Paths of the modules that a forward pass is in, the innermost last: after an error, where it happened."""
    entered: list[str] = []

    def leave(*_: Any) -> None:
        entered.pop()

    for path, module in network.named_modules():
        module.register_forward_pre_hook(lambda *_, path=path: entered.append(path))
        module.register_forward_hook(leave)
    return entered


def _mark(layer: NormLayer, module: Any) -> Callable[[Tensor], Tensor]:
    eps = float(module.eps)

    def mark(kind: str, x: Tensor) -> Tensor:
        attributes: dict[str, Any] = {
            "layer": layer.path,
            "epsilon": eps,
            "rank": x.dim(),
            "values": f"{x.shape[0]} {x.shape[2:].numel()}",  # of one channel: as a text, equal where they are equal
        }
        marked: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{kind}", [x], attributes, dtype=x.dtype, shape=x.shape, version=1
        )
        return marked

    def forward(x: Tensor) -> Tensor:
        if layer.normalise is None:
            y = mark("BatchNorm", x)
        elif isinstance(module, nn.GroupNorm):
            # ONNX changed its mind about whose the scale of its GroupNormalization is, a group's or a channel's.
            y = mark("Affine", functional.group_norm(x, module.num_groups, eps=eps))
        elif layer.tokens:
            y = mark("LayerNorm", x)
        else:
            y = mark("LayerNorm", x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        for part in layer.tail:
            y = part(y)
        return y

    return forward


def _stripped(model: ModelProto) -> ModelProto:
    """Without what the exporter notes for its developers, such as paths of source files; its names out of our way."""
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")
    graph.ClearField("value_info")
    add_prefix_graph(graph, "network/", rename_inputs=False, rename_outputs=False, inplace=True)
    return model


def _layers_named_in(message: str, program: torch.export.ExportedProgram | None) -> list[str]:
    """Paths of the layer whose operator an error is about."""
    for node in program.graph.nodes if program is not None else ():
        if node.op == "call_function" and repr(node.target) in message:
            return [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return []


def _innermost(error: BaseException) -> str:
    """What went wrong in the first place, on one line and without colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip() if lines else 'no message'}"
