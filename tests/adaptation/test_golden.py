"""Parity with the published implementations."""

from pathlib import Path

import numpy as np
import pytest
import torch

from normstream.adaptation import Recipe
from normstream.adaptation.hosting import Part, apply
from normstream.adaptation.layers import NormLayer
from normstream.adaptation.moments import Moments
from normstream.adaptation.norm.alpha_bn import AlphaBN
from normstream.adaptation.norm.unmix_tns import UnMixTNS

GOLDEN = Path(__file__).parents[1] / "golden"


def layer_of(data) -> NormLayer:
    mean, var, weight, bias = (
        torch.from_numpy(data[name]) for name in ("running_mean", "running_var", "weight", "bias")
    )
    return NormLayer(
        "bn",
        "BatchNorm2d",
        len(mean),
        torch.tensor(data["eps"], dtype=torch.float32),
        0,
        Moments(mean, var),
        weight,
        bias,
        None,
        (),
    )


@pytest.mark.parametrize("batch", [8, 3, 1])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("overwrite", [True, False])
def test_alpha_bn(batch, memory_format, overwrite):
    data = np.load(GOLDEN / f"alpha_bn_b{batch}.npz")
    layer = layer_of(data)
    names = [name for name in data.files if name.startswith("y_alpha_")]
    assert names
    for name in names:
        x = torch.from_numpy(data["x"]).clone(memory_format=memory_format)
        part = Part(Recipe(norm=AlphaBN(alpha=float(name.removeprefix("y_alpha_")))).norm, (batch,), {"bn": {}})
        with torch.inference_mode():
            y = apply(x, layer, part.statistics(layer, x), overwrite=overwrite)
        torch.testing.assert_close(y, torch.from_numpy(data[name]), rtol=0, atol=1e-5)
        assert (y.data_ptr() == x.data_ptr()) is overwrite


@pytest.mark.parametrize(("components", "batch"), [(16, 8), (16, 1), (128, 4), (1, 4)])
def test_unmix_tns(components, batch):
    data = np.load(GOLDEN / f"unmix_tns_k{components}_b{batch}.npz")
    layer = layer_of(data)
    # The published rate is fixed for a configured batch; ours follows from the images that come.
    momentum = 1 - (1 - float(data["momentum"])) ** (64 / batch)
    member = UnMixTNS(components=components, momentum=momentum)
    state = {
        "mean": torch.from_numpy(data["component_means_0"])[None],
        "var": torch.from_numpy(data["component_vars_0"])[None],
    }
    for turn in range(5):
        x = torch.from_numpy(data[f"x_{turn}"])
        part = Part(member, (batch,), {"bn": state})
        with torch.inference_mode():
            y = apply(x, layer, part.statistics(layer, x), overwrite=False)
        torch.testing.assert_close(y, torch.from_numpy(data[f"y_{turn}"]), rtol=0, atol=1e-5)
        state = part.layer_states["bn"]
        for name, key in (("mean", "component_means"), ("var", "component_vars")):
            torch.testing.assert_close(state[name][0], torch.from_numpy(data[f"{key}_{turn + 1}"]), rtol=0, atol=1e-5)
