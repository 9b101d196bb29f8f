import gc
import json
import threading

import numpy as np
import onnxruntime
import pytest
import torch
from hosted import moved, packaged

from normstream.adaptation import HostedModel, Preprocessing, Recipe, Request, initial_state, step
from normstream.adaptation.models import ModelSpec, load_model
from normstream.adaptation.norm.alpha_bn import AlphaBN as Served
from normstream.adaptation.reference import reference_logits
from normstream.clients.edge.errors import BadPackage, ProbeFailed
from normstream.clients.edge.local import EMA, AlphaBN, LocalRuntime, Running
from normstream.clients.edge.package import Package
from normstream.clients.edge.preprocessing import normalise
from normstream.clients.edge.runtime import Runtime


@pytest.fixture(params=["convolutions", "tokens", "both"])
def pair(request: pytest.FixtureRequest) -> tuple[HostedModel, Package]:
    return request.getfixturevalue(request.param), request.getfixturevalue(f"{request.param}_package")


def by_torch(hosted, parameters, package):
    return reference_logits(hosted, {n: torch.from_numpy(v.copy()) for n, v in parameters.items()}, package.reference)


def reference(package):
    return normalise(package.reference, package.manifest.preprocessing)


def test_logits_are_those_of_torch(pair):
    hosted, package = pair
    batch = reference(package)
    with torch.inference_mode():
        expected = hosted.network(torch.from_numpy(batch)).numpy()
    np.testing.assert_allclose(Runtime(package).logits(batch), expected, atol=1e-4)


def test_so_they_are_with_other_parameters(pair):
    hosted, package = pair
    parameters = moved(package)
    expected = by_torch(hosted, parameters, package)
    runtime = Runtime(package, parameters)
    np.testing.assert_allclose(runtime.logits(reference(package)), expected, atol=1e-4)
    assert runtime.probe(expected) < 1e-4
    assert np.abs(expected - Runtime(package).logits(reference(package))).max() > 1e-2


def test_an_update_is_another_runtime(pair):
    _, package = pair
    old = Runtime(package, threads=1)
    before = old.logits(reference(package))
    new = old.updated(moved(package))
    np.testing.assert_array_equal(old.logits(reference(package)), before)
    assert np.abs(new.logits(reference(package)) - before).max() > 1e-2


def test_no_layer_keeps_its_old_parameters(pair):
    """What ONNX Runtime would do without a word for an ordinary initializer that a fusion takes up."""
    _, package = pair
    source = Runtime(package).logits(reference(package))
    for name in package.manifest.tensors:
        start = 0
        for layer in (each for each in package.manifest.layers if name in each.tensors):
            parameters = {key: value.copy() for key, value in package.source.items()}
            parameters[name][start : start + layer.channels] += np.linspace(0.2, 0.6, layer.channels, dtype=np.float32)
            start += layer.channels
            assert np.abs(Runtime(package, parameters).logits(reference(package)) - source).max() > 1e-4, (layer, name)


def test_convolutions_and_their_batch_norms_are_one_operator(convolutions_package, tmp_path):
    kept = onnxruntime.InferenceSession.__init__
    operators = []

    def remember(self, path, options, **others):
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        kept(self, path, options, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime.InferenceSession, "__init__", remember)
        Runtime(convolutions_package)
    onnx = pytest.importorskip("onnx")
    operators = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert "BatchNormalization" not in operators
    assert "Conv" in operators or "FusedConv" in operators


@pytest.mark.parametrize("wrong", ["other", "nan", "shape"])
def test_a_probe_tells(convolutions_package, wrong):
    runtime = Runtime(convolutions_package)
    expected = runtime.logits(reference(convolutions_package))
    runtime.probe(expected)
    bad = {
        "other": expected + 0.01 * max(1, np.abs(expected).max()),
        "nan": np.full_like(expected, np.nan),
        "shape": expected[:1],
    }[wrong]
    with pytest.raises(ProbeFailed):
        runtime.probe(bad)


def test_nan_in_the_network_fails_the_probe(convolutions_package):
    expected = Runtime(convolutions_package).logits(reference(convolutions_package))
    parameters = dict(convolutions_package.source)
    parameters["bias"] = np.full_like(parameters["bias"], np.nan)
    with pytest.raises(ProbeFailed):
        Runtime(convolutions_package, parameters).probe(expected)


def test_many_threads_at_once(convolutions_package):
    runtime = Runtime(convolutions_package)
    batch = reference(convolutions_package)
    expected, wrong = runtime.logits(batch), []

    def run():
        wrong.extend(i for i in range(50) if not np.array_equal(runtime.logits(batch), expected))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_broken_network_is_told(convolutions_package, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no network")
    broken = Package(tmp_path, convolutions_package.manifest)
    broken.__dict__["source"] = convolutions_package.source
    with pytest.raises(BadPackage, match=r"model\.onnx"):
        Runtime(broken)


def test_alpha_bn_is_that_of_the_server(convolutions, convolutions_package):
    recipe = Recipe(norm=Served(alpha=0.3))
    state = initial_state(convolutions, recipe)
    local = LocalRuntime(convolutions_package, method=AlphaBN(0.3))
    for size in (1, 4):
        for batch in batches(convolutions_package, size=size):
            (served,) = step(convolutions, [Request(state, torch.from_numpy(batch))])
            np.testing.assert_allclose(local.logits(batch), served.logits.numpy(), atol=1e-4)


def test_alpha_0_is_the_network_as_it_is(convolutions_package, both_package):
    for package in (convolutions_package, both_package):
        parameters = moved(package)
        expected = Runtime(package, parameters).logits(reference(package))
        local = LocalRuntime(package, parameters, AlphaBN(0.0))
        np.testing.assert_allclose(local.logits(reference(package)), expected, atol=1e-4)
        local.probe(expected)
        np.testing.assert_allclose(
            LocalRuntime(package).updated(parameters).updated(package.source).updated(parameters).probe(expected),
            0,
            atol=1e-4,
        )


def batches(package, number=6, size=4):
    generator = np.random.default_rng(0)
    shape = (size, *package.manifest.preprocessing.input_size)
    return [(0.7 + 1.5 * generator.standard_normal(shape)).astype(np.float32) for _ in range(number)]


def test_ema_takes_each_batch_into_its_running_moments_after_it_was_used(convolutions_package):
    local = LocalRuntime(convolutions_package, method=EMA(momentum=0.1, alpha=0.5))
    assert local.running is not None
    source = Runtime(convolutions_package)
    first, second, *_ = batches(convolutions_package)
    np.testing.assert_allclose(local.logits(first), source.logits(first), atol=1e-4)
    running = local.running
    mixed = dict(convolutions_package.source)
    mixed["mean"] = (mixed["mean"] + running.mean) / 2
    mixed["var"] = (mixed["var"] + running.var) / 2
    np.testing.assert_allclose(local.logits(second), Runtime(convolutions_package, mixed).logits(second), atol=1e-4)
    assert np.abs(local.logits(second) - source.logits(second)).max() > 1e-3


def test_ema_of_many_images_one_by_one_comes_near_their_moments(convolutions_package):
    local = LocalRuntime(convolutions_package, method=EMA(momentum=0.05, alpha=1.0))
    images = np.concatenate(batches(convolutions_package, number=30))
    for image in images:
        local.logits(image[np.newaxis])
    _, mean, var = local._run(images, *(local.running.mean, local.running.var), 0.0)
    first = slice(0, 8)  # the first layer's moments do not depend on the running ones
    np.testing.assert_allclose(local.running.mean[first], mean[first], atol=0.15)
    np.testing.assert_allclose(local.running.var[first], var[first], rtol=0.2)


def test_moments_that_are_not_finite_are_not_learnt(convolutions_package):
    local = LocalRuntime(convolutions_package, method=EMA())
    before = local.running
    local.logits(np.full((1, 3, 32, 32), np.nan, np.float32))
    assert local.running is before


def test_updated_parameters_keep_what_the_edge_has_learnt(convolutions_package):
    local = LocalRuntime(convolutions_package, method=EMA(momentum=0.3))
    for batch in batches(convolutions_package):
        local.logits(batch)
    assert local.updated(moved(convolutions_package)).running is local.running


def test_kept_statistics_are_read_only_where_they_fit(convolutions_package, retrained_package):
    local = LocalRuntime(convolutions_package, method=EMA(momentum=0.3))
    local.logits(batches(convolutions_package)[0])
    content = local.running.packed(convolutions_package)
    read = Running.unpacked(content, convolutions_package)
    np.testing.assert_array_equal(read.mean, local.running.mean)
    np.testing.assert_array_equal(read.var, local.running.var)
    with pytest.raises(BadPackage, match="of the weights"):
        Running.unpacked(content, retrained_package)
    mean, var = local.running.mean, local.running.var
    wrong = {
        "does not fit": Running(mean[:-1], var[:-1]),
        "mean .* does not fit": Running(mean.astype(np.float64), var),
        "var .* does not fit": Running(mean, np.full_like(var, np.nan)),
        "negative": Running(mean, var - 10),
    }
    for words, running in wrong.items():
        with pytest.raises(BadPackage, match=words):
            Running.unpacked(running.packed(convolutions_package), convolutions_package)
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"fingerprint.npy"))  # of the zip's directory
    locked, packed = bytearray(content), bytearray(content)
    locked[entry + 8], packed[entry + 10] = 1, 99  # its flags, its method of compression
    for damaged in (b"", content[:-40], content[:200], b"rubbish", json.dumps({"mean": 1}).encode(), locked, packed):
        with pytest.raises(BadPackage, match="cannot be read"):
            Running.unpacked(bytes(damaged), convolutions_package)


def test_a_model_without_batch_norms_has_no_statistics(tokens_package):
    with pytest.raises(BadPackage, match="no batch norms"):
        LocalRuntime(tokens_package)


@pytest.mark.parametrize("wrong", [lambda: AlphaBN(1.5), lambda: EMA(momentum=-1), lambda: EMA(alpha=float("nan"))])
def test_a_wrong_weight_is_refused(wrong):
    with pytest.raises(ValueError, match="from 0 to 1"):
        wrong()


@pytest.mark.timeout(400)
def test_the_served_model_and_its_updates(tmp_path):
    """EfficientNet-Lite0 on photographs: logits of torch before and after an update, and alpha-BN on a batch."""
    import skimage.data

    hosted = load_model(ModelSpec.parse("tf_efficientnet_lite0"))
    package = packaged(hosted, tmp_path)
    from PIL import Image

    from normstream.clients.edge.preprocessing import preprocess

    photographs = [getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")]
    served: Preprocessing = hosted.preprocessing
    batch = preprocess(photographs, package.manifest.preprocessing)
    expected = np.stack([served(Image.fromarray(each)).numpy() for each in photographs])
    np.testing.assert_array_equal(batch, expected)
    with torch.inference_mode():
        logits = hosted.network(torch.from_numpy(batch)).numpy()
    runtime = Runtime(package)
    np.testing.assert_allclose(runtime.logits(batch), logits, atol=1e-4)
    assert package.labels is not None
    assert "cat" in package.labels[int(runtime.logits(batch)[1].argmax())]
    parameters = moved(package, by=0.02)
    runtime.updated(parameters).probe(by_torch(hosted, parameters, package))
    gc.collect()
