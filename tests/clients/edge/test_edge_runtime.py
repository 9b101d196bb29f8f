import gc
import threading

import numpy as np
import onnxruntime
import pytest
import torch
from hosted import moved

from normstream.adaptation import HostedModel, Preprocessing
from normstream.adaptation.reference import reference_logits
from normstream.clients.edge.errors import BadPackage, ProbeFailed
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


@pytest.mark.timeout(400)
def test_the_served_model_and_its_updates(lite0, lite0_package):
    """EfficientNet-Lite0 on photographs: logits of torch before and after an update, and alpha-BN on a batch."""
    import skimage.data

    hosted, package = lite0, lite0_package
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
