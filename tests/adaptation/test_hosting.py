"""Hosting: real architectures, exact when left alone, never changed."""

import threading

import pytest
import timm
import torch
from small_net import SIZE, SmallNet, host_small, images, randomised
from timm.layers import FrozenBatchNormAct2d, SyncBatchNormAct, convert_sync_batchnorm, freeze_batch_norm_2d
from torch import nn

from normstream.adaptation import (
    PRESETS,
    HostedModel,
    HostingError,
    Preprocessing,
    Recipe,
    Request,
    drift,
    initial_state,
    step,
)
from normstream.adaptation.norm.alpha_bn import AlphaBN

# name, input side, batch-normalisation layers
FAMILIES = [
    ("resnet18", 64, 20),
    ("resnetv2_50", 64, 49),
    ("densenet121", 64, 121),
    ("tf_efficientnet_lite0", 64, 49),
    ("mobilenetv3_small_050", 64, 34),
    ("regnety_002", 64, 44),
    ("repvgg_a0", 64, 61),
    ("levit_128s", 224, 52),
    ("convnext_atto", 64, 0),
    ("vit_tiny_patch16_224", 224, 0),
]


def host_timm(name: str, side: int) -> tuple[nn.Module, HostedModel]:
    """The same network twice: plain, and hosted."""
    torch.manual_seed(0)
    plain = randomised(timm.create_model(name)).eval()
    hosted = timm.create_model(name)
    hosted.load_state_dict(plain.state_dict())
    return plain.to(memory_format=torch.channels_last), HostedModel(
        hosted, name, Preprocessing.of(plain, input_size=(3, side, side))
    )


@pytest.mark.parametrize(("name", "side", "layers"), FAMILIES)
def test_families(name, side, layers):
    plain, hosted = host_timm(name, side)
    batch = images(2, size=(3, side, side)).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = plain(batch)
    assert len(hosted.batch_norms) == layers
    assert hosted.refused == {}
    weights = {key: value.clone() for key, value in hosted.network.state_dict().items()}

    (source,) = step(hosted, [Request(initial_state(hosted, PRESETS["source"]), batch)])
    assert torch.equal(source.logits, expected)
    (single,) = step(hosted, [Request(initial_state(hosted, PRESETS["source"]), batch[:1])])
    with torch.inference_mode():
        assert torch.equal(single.logits, plain(batch[:1]))
    assert source.seen is None
    assert drift(source) == {}

    if not layers:
        with pytest.raises(HostingError, match=r"'alpha_bn' adapts batch normalisation.*no batch normalisation at all"):
            initial_state(hosted, PRESETS["alpha_bn"])
        return
    (none,) = step(hosted, [Request(initial_state(hosted, Recipe(norm=AlphaBN(alpha=0))), batch)])
    torch.testing.assert_close(none.logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert drift(none).keys() == {layer.path for layer in hosted.batch_norms}

    recipe = Recipe(norm=AlphaBN(alpha=0.3))
    (adapted,) = step(hosted, [Request(initial_state(hosted, recipe), batch)])
    assert not torch.allclose(adapted.logits, expected)
    with torch.no_grad():
        torch.testing.assert_close(adapted.logits, reference_alpha_bn(plain, batch, 0.3), rtol=1e-3, atol=1e-3)
    assert all(torch.equal(value, weights[key]) for key, value in hosted.network.state_dict().items())


def reference_alpha_bn(plain: nn.Module, batch: torch.Tensor, alpha: float) -> torch.Tensor:
    """alpha-BN the slow way: before each layer runs, its buffers are mixed with the statistics of its input."""

    def mix(module: nn.Module, args: tuple[torch.Tensor]) -> None:
        x = args[0]
        axes = [axis for axis in range(x.dim()) if axis != 1]
        n = x.numel() // x.shape[1]
        module.running_mean.lerp_(x.mean(axes), alpha)
        module.running_var.lerp_(x.var(axes, correction=1 if n > 1 else 0), alpha)

    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.register_forward_pre_hook(mix)
    return plain(batch)


@pytest.mark.parametrize(
    ("convert", "kind"),
    [(freeze_batch_norm_2d, FrozenBatchNormAct2d), (convert_sync_batchnorm, SyncBatchNormAct)],
)
def test_frozen_and_sync_relatives_keep_their_activation(convert, kind):
    _, hosted = host_timm("tf_efficientnet_lite0", 64)
    relative, original = timm.create_model("tf_efficientnet_lite0"), hosted.network
    relative.load_state_dict(original.state_dict())
    relative = convert(relative)
    assert any(isinstance(module, kind) for module in relative.modules())
    other = HostedModel(relative, "relative", hosted.preprocessing)
    assert len(other.batch_norms) == 49
    batch = images(2, size=(3, 64, 64))
    (one,), (two,) = (step(each, [Request(initial_state(each, PRESETS["bn1"]), batch)]) for each in (hosted, other))
    torch.testing.assert_close(one.logits, two.logits, rtol=1e-3, atol=1e-3)


class PreActivation(nn.Module):
    """The shortcut reads the first layer's input again, the second layer's input is read by nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.conv, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.second(self.conv(self.first(x).relu()))
        return self.head((x + y).mean((2, 3)))


def test_a_layer_overwrites_its_input_only_where_nothing_else_reads_it():
    hosted = HostedModel(randomised(PreActivation()), "pre", Preprocessing(input_size=SIZE))
    overwrites = {layer.path: hosted.network.get_submodule(layer.path).forward.overwrite for layer in hosted.layers}
    assert overwrites == {"first": False, "second": True}


def test_overwriting_changes_no_answer():
    for name in ("resnetv2_50", "densenet121"):
        _, hosted = host_timm(name, 64)
        batch = images(3, size=(3, 64, 64))
        request = Request(initial_state(hosted, PRESETS["bn1"]), batch)
        (fast,) = step(hosted, [request])
        for layer in hosted.layers:
            object.__setattr__(hosted.network.get_submodule(layer.path).forward, "overwrite", False)
        (safe,) = step(hosted, [request])
        assert torch.equal(fast.logits, safe.logits)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.norm(self.norm(self.conv(x))).mean((2, 3)))


class Untracked(Twice):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


class OwnForward(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).sigmoid()


class Custom(Untracked):
    def __init__(self) -> None:
        super().__init__()
        self.norm = OwnForward(4)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Twice, "a forward pass runs it 2 times"),
        (Custom, "OwnForward has a forward of its own"),
    ],
)
def test_a_layer_that_cannot_be_served_is_refused_with_the_reason(network, reason):
    hosted = HostedModel(network(), "odd", Preprocessing(input_size=SIZE))
    assert reason in hosted.refused["norm"]
    assert hosted.batch_norms == ()
    with pytest.raises(HostingError, match=reason):
        initial_state(hosted, PRESETS["ema"])
    step(hosted, [Request(initial_state(hosted, PRESETS["source"]), images(2))])


class Folded(nn.Module):
    """Tokens are folded into the batch before the layer, image by image or (wrongly) token by token."""

    def __init__(self, *, image_by_image: bool) -> None:
        super().__init__()
        self.image_by_image = image_by_image
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 8, stride=8), nn.BatchNorm1d(4), nn.Linear(4, 5)

    def forward(self, x):
        tokens = self.conv(x).flatten(2).transpose(1, 2)  # [B, N, C]
        if self.image_by_image:
            return self.head(self.norm(tokens.flatten(0, 1)).reshape_as(tokens).mean(1))
        tokens = tokens.transpose(0, 1)
        return self.head(self.norm(tokens.flatten(0, 1)).reshape_as(tokens).mean(0))


def test_tokens_folded_into_the_batch_stay_with_their_stream():
    hosted = HostedModel(randomised(Folded(image_by_image=True)), "folded", Preprocessing(input_size=SIZE))
    requests = [
        Request(initial_state(hosted, PRESETS[name]), images(n, seed=n)) for name, n in (("bn1", 1), ("ema", 3))
    ]
    for request, result in zip(requests, step(hosted, requests), strict=True):
        torch.testing.assert_close(result.logits, step(hosted, [request])[0].logits)


@pytest.mark.parametrize(
    ("network", "reason"),
    [(Folded(image_by_image=False), ""), (Untracked(), "norm.*it keeps no running statistics")],
)
def test_a_network_in_which_images_meet_is_refused(network, reason):
    with pytest.raises(HostingError, match=f"images of one batch meet.*{reason}"):
        HostedModel(randomised(network), "meeting", Preprocessing(input_size=SIZE))


def test_outside_a_step_the_network_behaves_as_before():
    torch.manual_seed(0)
    network = randomised(SmallNet()).eval()
    expected = network(images(2))
    hosted = HostedModel(network, "small", Preprocessing(input_size=SIZE))
    step(hosted, [Request(initial_state(hosted, PRESETS["bn1"]), images(4, seed=1))])
    assert torch.allclose(network(images(2)), expected, atol=1e-6)


def test_two_threads_do_not_meet():
    hosted = host_small()
    requests = [Request(initial_state(hosted, PRESETS[name]), images(2, seed=9)) for name in ("bn1", "source")]
    expected = [step(hosted, [request])[0].logits for request in requests]
    wrong: list[int] = []

    def serve(index: int) -> None:
        answers = (step(hosted, [requests[index]])[0].logits for _ in range(50))
        wrong.extend(index for logits in answers if not torch.allclose(logits, expected[index], atol=1e-5))

    threads = [threading.Thread(target=serve, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("shape", [(2, 3, 16), (0, 3, 16, 16), (2, 1, 16, 16), (2, 3, 16, 17)])
def test_images_of_another_shape_are_refused(small, shape):
    with pytest.raises(ValueError, match=r"images have shape .* takes \[B, 3, 16, 16\]"):
        step(small, [Request(initial_state(small, PRESETS["source"]), torch.zeros(shape))])


def test_a_state_of_another_model_is_refused(small):
    other = host_small(seed=1)
    with pytest.raises(ValueError, match="the state belongs to model 'small'"):
        step(small, [Request(initial_state(other, PRESETS["source"]), images(1))])


def test_the_fingerprint_tells_weights_and_preprocessing_apart(small):
    assert host_small().fingerprint == small.fingerprint
    assert host_small(seed=1).fingerprint != small.fingerprint
    torch.manual_seed(0)
    other = HostedModel(randomised(SmallNet()), "small", Preprocessing(input_size=SIZE, mean=(0.5, 0.5, 0.5)))
    assert other.fingerprint != small.fingerprint


def test_drift_is_zero_on_what_the_model_was_trained_on_and_grows_with_the_shift(small):
    def mean_drift(batch):
        (result,) = step(small, [Request(initial_state(small, PRESETS["bn1"]), batch)])
        drifts = drift(result)
        assert list(drifts) == [layer.path for layer in small.layers]
        return sum(drifts.values()) / len(drifts)

    assert 0 <= mean_drift(images(64)) < mean_drift(images(64) * 3) < mean_drift(images(64) * 10)
