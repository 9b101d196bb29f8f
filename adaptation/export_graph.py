"""ONNX graphs whose normalisation layers take their tensors from outside.

Two graphs are made of one marked graph (`export_trace`). In the one every tensor of a layer is an *external*
initializer, which ONNX Runtime lets its user replace before it optimises, so that convolution and batch normalisation
still fuse. In the other the tensors of batch normalisation are inputs, and so are mixed with each batch's moments.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from .export_trace import DOMAIN
from .layers import Layers, NormLayer

EXTERNAL = "norm"  # the file in which external initializers are said to be; there is none


def replaceable(marked: ModelProto, layers: Layers) -> ModelProto:
    """The network with external initializers `{path}.weight`, `.bias` and, for batch norms, `.mean`, `.var`."""
    graph = _Graph(marked, layers)
    return graph.rebuilt(graph.standing)


def adaptive(marked: ModelProto, layers: Layers) -> ModelProto:
    """The network whose batch norms mix given statistics with the batch's.

    Inputs beside the images: `weight`, `bias`, `mean`, `var` [C_total of the batch norms], and `alpha`, a scalar: the
    weight of the batch. Outputs beside the logits: `batch_mean` and `batch_var` [C_total], biased. What is mixed is
    the unbiased variance; a layer that sees a single value per channel takes the given statistics.
    """
    graph = _Graph(marked, layers)
    batch_norms = [layer for layer in layers if layer.normalise is None]
    model = graph.rebuilt(graph.mixing)
    total = sum(layer.channels for layer in batch_norms)
    sizes = graph.constant("sizes", np.asarray([layer.channels for layer in batch_norms], np.int64))
    for name in ("weight", "bias", "mean", "var"):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [total]))
        outputs = [f"{layer.path}.{name}" for layer in batch_norms]
        model.graph.node.insert(0, helper.make_node("Split", [name, sizes], outputs, axis=0))
    model.graph.input.append(helper.make_tensor_value_info("alpha", TensorProto.FLOAT, []))
    for name in ("batch_mean", "batch_var"):
        pieces = [f"{layer.path}.{name}" for layer in batch_norms]
        model.graph.node.append(helper.make_node("Concat", pieces, [name], axis=0))
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [total]))
    return model


@dataclass(eq=False)
class _Graph:
    """A copy of a marked graph while its marks are replaced."""

    marked: ModelProto
    layers: Layers
    model: ModelProto = field(init=False)
    constants: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.model = ModelProto()
        self.model.CopyFrom(self.marked)

    def rebuilt(self, build: Callable[[NodeProto, NormLayer], Sequence[NodeProto]]) -> ModelProto:
        """The model with what `build` makes of each marked node."""
        by_path = {layer.path: layer for layer in self.layers}
        nodes: list[NodeProto] = []
        for node in self.model.graph.node:
            marked = node.domain == DOMAIN
            nodes.extend(build(node, by_path[_attribute(node, "layer").decode()]) if marked else [node])
        self.model.graph.ClearField("node")
        self.model.graph.node.extend(nodes)
        kept = [opset for opset in self.model.opset_import if opset.domain != DOMAIN]
        self.model.ClearField("opset_import")
        self.model.opset_import.extend(kept)
        return self.model

    def standing(self, node: NodeProto, layer: NormLayer) -> Sequence[NodeProto]:
        """By the layer's own operator, and tensors that can be replaced."""
        names = ("weight", "bias", "mean", "var") if layer.normalise is None else ("weight", "bias")
        tensors = [f"{layer.path}.{name}" for name in names]
        self.model.graph.initializer.extend(_external(name, layer.channels) for name in tensors)
        (x,), (y,) = node.input, node.output
        epsilon = _attribute(node, "epsilon")
        if node.op_type == "BatchNorm":
            return [helper.make_node("BatchNormalization", [x, *tensors], [y], name=layer.path, epsilon=epsilon)]
        if node.op_type == "LayerNorm":
            return [
                helper.make_node("LayerNormalization", [x, *tensors], [y], name=layer.path, axis=-1, epsilon=epsilon)
            ]
        shape = self.constant(f"facing.{_rank(node)}", np.asarray([1, -1, *[1] * (_rank(node) - 2)], np.int64))
        weight, bias = tensors
        return [
            helper.make_node("Reshape", [weight, shape], [f"{weight}.facing"]),
            helper.make_node("Reshape", [bias, shape], [f"{bias}.facing"]),
            helper.make_node("Mul", [x, f"{weight}.facing"], [f"{layer.path}.scaled"]),
            helper.make_node("Add", [f"{layer.path}.scaled", f"{bias}.facing"], [y], name=layer.path),
        ]

    def mixing(self, node: NodeProto, layer: NormLayer) -> Sequence[NodeProto]:
        """By statistics that are mixed with the batch's; layers without statistics as ever."""
        return list(self._mixing(node, layer)) if layer.normalise is None else self.standing(node, layer)

    def _mixing(self, node: NodeProto, layer: NormLayer) -> Iterator[NodeProto]:
        (x,), (y,), path = node.input, node.output, layer.path
        values = _attribute(node, "values").decode()
        weight, correction = f"alpha of {values}", f"n / (n - 1) of {values}"
        if values not in self.constants:  # Layers with maps of one size share these.
            self.constants.add(values)
            yield from self._weights(x, layer.channels, weight, correction)
        rank = _rank(node)
        axes = self.constant(f"axes.{rank}", np.asarray([0, *range(2, rank)], np.int64))
        flat = self.constant("flat", np.asarray([-1], np.int64))
        mean, var = f"{path}.mean", f"{path}.var"
        batch_mean, batch_var = f"{path}.batch_mean", f"{path}.batch_var"

        def made(operator: str, inputs: Sequence[str], output: str) -> NodeProto:
            return helper.make_node(operator, inputs, [output])

        yield helper.make_node("ReduceMean", [x, axes], [f"{path}.centre"], keepdims=1)
        yield made("Reshape", [f"{path}.centre", flat], batch_mean)
        yield made("Sub", [x, f"{path}.centre"], f"{path}.centred")
        yield made("Mul", [f"{path}.centred", f"{path}.centred"], f"{path}.squares")
        yield helper.make_node("ReduceMean", [f"{path}.squares", axes], [batch_var], keepdims=0)
        yield made("Mul", [batch_var, correction], f"{path}.unbiased")
        mixed = []
        for given, seen in ((mean, batch_mean), (var, f"{path}.unbiased")):
            yield made("Sub", [seen, given], f"{given}.difference")
            yield made("Mul", [f"{given}.difference", weight], f"{given}.step")
            yield made("Add", [given, f"{given}.step"], f"{given}.mixed")
            mixed.append(f"{given}.mixed")
        inputs = [x, f"{path}.weight", f"{path}.bias", *mixed]
        yield helper.make_node("BatchNormalization", inputs, [y], name=path, epsilon=_attribute(node, "epsilon"))

    def _weights(self, x: str, channels: int, weight: str, correction: str) -> Iterator[NodeProto]:
        """Of the batch's moments, which are of n values per channel: alpha, or 0 where n is 1; n / (n - 1)."""
        zero, one = self.constant("zero", np.float32(0)), self.constant("one", np.float32(1))
        count = self.constant(f"channels.{channels}", np.float32(channels))
        n = f"n of {weight}"
        yield helper.make_node("Size", [x], [f"{n}, all channels"])
        yield helper.make_node("Cast", [f"{n}, all channels"], [f"{n}, real"], to=TensorProto.FLOAT)
        yield helper.make_node("Div", [f"{n}, real", count], [n])
        yield helper.make_node("Greater", [n, one], [f"{n}, several"])
        yield helper.make_node("Where", [f"{n}, several", "alpha", zero], [weight])
        yield helper.make_node("Sub", [n, one], [f"{n}, less one"])
        yield helper.make_node("Max", [f"{n}, less one", one], [f"{n}, divisor"])
        yield helper.make_node("Div", [n, f"{n}, divisor"], [correction])

    def constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        """An ordinary initializer, once; its name in the graph."""
        name = f"{DOMAIN}.{name}"
        if name not in self.constants:
            self.constants.add(name)
            self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def _rank(node: NodeProto) -> int:
    """How many axes a marked node's activations have."""
    return int(_attribute(node, "rank"))


def _attribute(node: NodeProto, name: str) -> Any:
    return next(helper.get_attribute_value(each) for each in node.attribute if each.name == name)


def _external(name: str, channels: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[channels])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=EXTERNAL)
    return tensor
