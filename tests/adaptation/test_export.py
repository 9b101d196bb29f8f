"""Packages: what ONNX Runtime answers with a package's files is what torch answers, whatever the norm tensors."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small_net import SIZE, SmallNet, host_small, host_tokens, images, randomised
from timm.layers import BatchNormAct2d
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from normstream.adaptation import HostedModel, HostingError, ModelSpec, Preprocessing, Recipe, Request, load_model
from normstream.adaptation import initial_state as new_state
from normstream.adaptation import step as run_step
from normstream.adaptation.export import export, source_parameters
from normstream.adaptation.export_check import named
from normstream.adaptation.package_files import MANIFEST, is_whole
from normstream.adaptation.reference import forward_with, reference_images, reference_logits


class Fused(nn.Module):
    """Batch norms that do the activation and the dropout too, behind convolutions that pad."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding="same", bias=False)
        self.norm = BatchNormAct2d(8, act_layer=nn.SiLU, drop_layer=nn.Dropout)
        self.other = nn.Conv2d(8, 8, 3, groups=8, bias=False)
        self.other_norm = nn.BatchNorm2d(8, affine=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.other_norm(self.other(self.norm(self.conv(x)))).relu().mean((2, 3)))


def host(network, size=SIZE):
    torch.manual_seed(0)
    return HostedModel(randomised(network), "made up", Preprocessing(input_size=size))


NETWORKS = {
    "batch norm": host_small,
    "group and layer norm": host_tokens,
    "norm and activation": lambda: host(Fused()),
    "convnext": lambda: host(ConvNeXt(num_classes=5, depths=(1, 1, 1, 1), dims=(8, 12, 16, 20)), (3, 32, 32)),
    "vision transformer": lambda: host(
        VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=5), (3, 32, 32)
    ),
}


@pytest.fixture(scope="module", params=NETWORKS)
def packaged(request, packages):
    hosted = NETWORKS[request.param]()
    return hosted, export(hosted, packages)


@pytest.fixture(scope="module")
def small(packages):
    hosted = host_small()
    return hosted, export(hosted, packages)


@pytest.fixture(scope="module")
def lite(packages):
    hosted = load_model(ModelSpec(architecture="tf_efficientnet_lite0"))
    return hosted, export(hosted, packages)


def altered(hosted, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value * (1 + 0.1 * torch.rand(value.shape, generator=generator))
        for name, value in source_parameters(hosted).items()
    }


def as_an_edge_does(place, parameters, **options):
    """A session from the package's files and parameters side by side; nothing of torch."""
    layers = json.loads((place / MANIFEST).read_text())["layers"]
    tensors = {}
    for name, value in parameters.items():
        own = [layer for layer in layers if layer["batch_norm"] or name in {"weight", "bias"}]
        ends = np.cumsum([layer["channels"] for layer in own])[:-1]
        pieces = np.split(np.asarray(value), ends)
        tensors |= {f"{layer['path']}.{name}": piece.copy() for layer, piece in zip(own, pieces, strict=True)}
    settings = onnxruntime.SessionOptions()
    for name, value in options.items():
        setattr(settings, name, value)
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(tensor) for tensor in tensors.values()]
    settings.add_external_initializers(list(tensors), values)
    return onnxruntime.InferenceSession(place / "model.onnx", settings)


def close(array, expected):
    np.testing.assert_allclose(array, np.asarray(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_logits_follow_the_norm_tensors(packaged, seed):
    hosted, place = packaged
    parameters = source_parameters(hosted) if seed is None else altered(hosted, seed)
    session = as_an_edge_does(place, parameters)
    for size in (1, 2, 5):
        batch = images(size, size=hosted.preprocessing.input_size)
        (logits,) = session.run(["logits"], {"images": batch.numpy()})
        close(logits, forward_with(hosted, parameters, batch)[0].logits)


def test_altered_tensors_do_change_the_answer(small):
    hosted, place = small
    batch = {"images": images(2).numpy()}
    (before,) = as_an_edge_does(place, source_parameters(hosted)).run(["logits"], batch)
    (after,) = as_an_edge_does(place, altered(hosted)).run(["logits"], batch)
    assert np.abs(before - after).max() > 1e-2


def test_files_are_those_of_the_manifest(packaged):
    hosted, place = packaged
    manifest = json.loads((place / MANIFEST).read_text())
    assert manifest["format"] == "normstream.package/1"
    assert place.name == hosted.fingerprint.removeprefix("sha256:")
    assert manifest["fingerprint"] == hosted.fingerprint
    assert [layer["path"] for layer in manifest["layers"]] == hosted.layers.paths
    assert Preprocessing(**manifest["preprocessing"]) == hosted.preprocessing
    expected = {"model.onnx", "norm.npz", "reference.npy"} | ({"adaptive.onnx"} if hosted.batch_norms else set())
    assert set(manifest["files"]) == expected
    assert {path.name for path in place.iterdir()} == expected | {MANIFEST}
    assert is_whole(place)
    with np.load(place / "norm.npz", allow_pickle=False) as norm:
        assert set(norm) == set(source_parameters(hosted))
        for name, value in source_parameters(hosted).items():
            assert norm[name].dtype == np.float32
            assert np.array_equal(norm[name], value)


def test_nothing_of_this_machine_is_in_the_files(small):
    _, place = small
    for path in place.iterdir():
        assert str(Path(torch.__file__).parents[1]).encode() not in path.read_bytes()
        assert str(Path(__file__).parent).encode() not in path.read_bytes()


def test_without_the_tensors_it_does_not_run(small):
    _, place = small
    with pytest.raises(Exception, match="norm"):
        onnxruntime.InferenceSession(place / "model.onnx")


def test_an_initializer_added_the_other_way_is_never_taken_silently(small):
    # ONNX Runtime's `add_initializer` leaves the old values in fused layers and says nothing.
    hosted, place = small
    settings = onnxruntime.SessionOptions()
    tensors = named(hosted.layers, altered(hosted))
    kept = {name: onnxruntime.OrtValue.ortvalue_from_numpy(tensor) for name, tensor in tensors.items()}
    for name, value in kept.items():
        settings.add_initializer(name, value)
    with pytest.raises(Exception, match="norm"):
        onnxruntime.InferenceSession(place / "model.onnx", settings)


def test_convolution_and_batch_norm_are_one(lite, tmp_path):
    hosted, place = lite
    as_an_edge_does(place, altered(hosted), optimized_model_filepath=str(tmp_path / "optimised.onnx"))
    graph = onnx.load(tmp_path / "optimised.onnx").graph
    operators = Counter(node.op_type for node in graph.node)
    assert operators["BatchNormalization"] == 0
    assert operators["Conv"] == len(hosted.layers) == 49
    assert sum(operators.values()) < 60  # Activations and additions are in the convolutions too.


def test_lite_follows_torch_and_keeps_its_names(lite):
    hosted, place = lite
    reference = np.load(place / "reference.npy")
    assert reference.shape == (2, 224, 224, 3)
    parameters = altered(hosted)
    preprocessing = hosted.preprocessing
    pixels = (reference.astype(np.float32) / 255 - np.float32(preprocessing.mean)) / np.float32(preprocessing.std)
    batch = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)
    (logits,) = as_an_edge_does(place, parameters).run(["logits"], {"images": batch})
    close(logits, reference_logits(hosted, parameters, reference))
    assert json.loads((place / MANIFEST).read_text())["labels"][0] == "tench"


def mixed(place, batch, parameters, alpha):
    session = onnxruntime.InferenceSession(place / "adaptive.onnx")
    feed = {name: value.numpy() for name, value in parameters.items()}
    return session.run(None, {"images": batch.numpy(), "alpha": np.asarray(alpha, np.float32)} | feed)


@pytest.mark.parametrize("count", [1, 4])
def test_adaptive_is_alpha_bn(small, count):
    # One image is a single value for a batch norm on a 1x1 map: that layer keeps the given statistics.
    hosted, place = small
    recipe = Recipe.model_validate({"norm": {"name": "alpha_bn", "alpha": 0.1}})
    batch = images(count)
    logits, mean, var = mixed(place, batch, source_parameters(hosted), 0.1)
    (result,) = run_step(hosted, [Request(new_state(hosted, recipe), batch)])
    close(logits, result.logits)
    assert mean.shape == var.shape == (sum(hosted.batch_norms.channels),)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_adaptive_takes_other_parameters(small, alpha):
    hosted, place = small
    batch, parameters = images(3), altered(hosted)
    logits, mean, var = mixed(place, batch, parameters, alpha)
    forwarded, part = forward_with(hosted, parameters, batch, alpha)
    close(logits, forwarded.logits)
    first = hosted.batch_norms[0]
    close(mean[: first.channels], part.seen[first.path].mean)
    close(var[: first.channels], part.seen[first.path].var)


def test_reference_images_are_the_same_each_time(small):
    hosted, place = small
    assert np.array_equal(reference_images(hosted), np.load(place / "reference.npy"))
    logits = reference_logits(hosted, source_parameters(hosted), reference_images(hosted))
    assert logits.dtype == np.float32
    assert logits.shape == (2, hosted.classes)
    assert not np.array_equal(*reference_images(hosted))


def test_the_hosted_model_is_as_before(tmp_path):
    hosted = host_small()
    part = forward_with(hosted, altered(hosted), images(2))[0]
    kept = {name: value.clone() for name, value in hosted.network.state_dict().items()}
    export(hosted, tmp_path)
    after = forward_with(hosted, altered(hosted), images(2))[0]
    assert torch.equal(part.logits, after.logits)
    assert torch.equal(part.features, after.features)
    assert all(torch.equal(value, kept[name]) for name, value in hosted.network.state_dict().items())


def test_a_whole_package_is_left_alone_and_a_damaged_one_made_anew(small, tmp_path):
    hosted, _ = small
    place = export(hosted, tmp_path)
    made = (place / MANIFEST).stat().st_mtime_ns
    assert export(hosted, tmp_path) == place
    assert (place / MANIFEST).stat().st_mtime_ns == made
    for name, damage in (("model.onnx", b"half of it"), ("norm.npz", b""), (MANIFEST, b"{}")):
        whole = (place / name).read_bytes()
        (place / name).write_bytes(damage)
        assert not is_whole(place)
        (place / name).write_bytes(whole)
    (place / "norm.npz").unlink()
    assert not is_whole(place)
    assert export(hosted, tmp_path) == place
    assert is_whole(place)
    assert [path.name for path in tmp_path.iterdir()] == [place.name]


class Branching(nn.Module):
    """Decides by what it sees."""

    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class Noisy(nn.Module):
    """Answers a little differently each time."""

    def forward(self, x):
        return x + 8e-4 * torch.rand_like(x)


@torch.library.custom_op("normstream_tests::odd", mutates_args=())
def odd(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@odd.register_fake
def _(x):
    return torch.empty_like(x)


class Odd(nn.Module):
    """An operator that ONNX does not know."""

    def forward(self, x):
        return odd(x)


@pytest.mark.parametrize(
    ("module", "part", "message"),
    [
        (Branching(), "body", r"layer 'body\.6'.*data-dependent"),
        (Odd(), "body", r"layer 'body\.6'.*normstream_tests.odd"),
        (Noisy(), "head", r"model\.onnx gives other logits than torch"),
    ],
    ids=["control flow", "operator", "other answers"],
)
def test_what_cannot_be_exported_is_refused_by_name(module, part, message, tmp_path):
    network = SmallNet()
    network.get_submodule(part).append(module)
    hosted = host(network)
    with pytest.raises(HostingError, match=message):
        export(hosted, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_norm_layers_is_refused(tmp_path):
    hosted = host(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)))
    with pytest.raises(HostingError, match="no normalisation layer"):
        export(hosted, tmp_path)
