"""Networks on an edge that adapt their statistics to what they see."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hosted import moved

from normstream.adaptation import Recipe, Request, initial_state, step
from normstream.adaptation.norm.alpha_bn import AlphaBN as Served
from normstream.clients.edge import local_runtime
from normstream.clients.edge.errors import BadPackage
from normstream.clients.edge.local import EMA, AlphaBN, Running
from normstream.clients.edge.local_runtime import AlphaBNRuntime, EMARuntime
from normstream.clients.edge.open_network import OpenNetwork
from normstream.clients.edge.pace import Pace
from normstream.clients.edge.preprocessing import normalise
from normstream.clients.edge.runtime import Runtime


class Time:
    """Passes when it is told to, and by a tick whenever somebody looks."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now = 100.0
        self.tick = tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


HURRY = {"share": 1e-6}  # of a time that ticks: after an image that is taken in the rest is a minute


def reference(package):
    return normalise(package.reference, package.manifest.preprocessing)


def images(package, number=60):
    return [batch[:1] for batch in batches(package, number, 1)]


def test_alpha_bn_is_that_of_the_server(convolutions, convolutions_package):
    recipe = Recipe(norm=Served(alpha=0.3))
    state = initial_state(convolutions, recipe)
    local = AlphaBNRuntime(convolutions_package, method=AlphaBN(0.3))
    for size in (1, 4):
        for batch in batches(convolutions_package, size=size):
            (served,) = step(convolutions, [Request(state, torch.from_numpy(batch))])
            np.testing.assert_allclose(local.logits(batch), served.logits.numpy(), atol=1e-4)


def test_alpha_0_is_the_network_as_it_is(convolutions_package, both_package):
    for package in (convolutions_package, both_package):
        parameters = moved(package)
        expected = Runtime(package, parameters).logits(reference(package))
        local = AlphaBNRuntime(package, parameters, AlphaBN(0.0))
        np.testing.assert_allclose(local.logits(reference(package)), expected, atol=1e-4)
        local.probe(expected)
        np.testing.assert_allclose(
            AlphaBNRuntime(package).updated(parameters).updated(package.source).updated(parameters).probe(expected),
            0,
            atol=1e-4,
        )


def batches(package, number=6, size=4):
    generator = np.random.default_rng(0)
    shape = (size, *package.manifest.preprocessing.input_size)
    return [(0.7 + 1.5 * generator.standard_normal(shape)).astype(np.float32) for _ in range(number)]


def test_ema_takes_each_batch_into_its_running_moments_after_it_was_used(convolutions_package):
    local = EMARuntime(convolutions_package, method=EMA(momentum=0.1, alpha=0.5))
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
    local = EMARuntime(convolutions_package, method=EMA(momentum=0.05, alpha=1.0))
    images = np.concatenate(batches(convolutions_package, number=30))
    for image in images:
        local.logits(image[np.newaxis])
    given = local.running.mixed_into(convolutions_package.source, 1.0)
    _, mean, var = OpenNetwork(convolutions_package, convolutions_package.source, None).run(images, given)
    first = slice(0, 8)  # the first layer's moments do not depend on the running ones
    np.testing.assert_allclose(local.running.mean[first], mean[first], atol=0.15)
    np.testing.assert_allclose(local.running.var[first], var[first], rtol=0.2)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e25])  # the last has finite moments, and they cannot be merged
def test_moments_that_are_not_finite_are_not_learnt(convolutions_package, value):
    local = EMARuntime(convolutions_package, method=EMA())
    before = local.running
    local.logits(np.full((1, 3, 32, 32), value, np.float32))
    assert local.running is before


def test_updated_parameters_keep_what_the_edge_has_learnt(convolutions_package):
    local = EMARuntime(convolutions_package, method=EMA(momentum=0.3))
    for batch in batches(convolutions_package):
        local.logits(batch)
    assert local.updated(moved(convolutions_package)).running is local.running


def test_kept_statistics_are_read_only_where_they_fit(convolutions_package, retrained_package):
    local = EMARuntime(convolutions_package, method=EMA(momentum=0.3))
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
    for runtime in (AlphaBNRuntime, EMARuntime):
        with pytest.raises(BadPackage, match="no batch norms"):
            runtime(tokens_package)


@pytest.mark.parametrize("wrong", [lambda: AlphaBN(1.5), lambda: EMA(momentum=-1), lambda: EMA(alpha=float("nan"))])
def test_a_wrong_weight_is_refused(wrong):
    with pytest.raises(ValueError, match="from 0 to 1"):
        wrong()


@pytest.mark.parametrize("share", [0, -0.1, float("nan")])
def test_a_share_of_no_time_is_refused(share):
    with pytest.raises(ValueError, match=f"share is {share}; give a number above 0"):
        EMA(share=share)


def test_what_takes_a_second_is_followed_by_a_rest_of_a_seconds_share():
    time = Time()
    pace = Pace(0.02, time)
    assert pace.due
    pace.spent(0.1)
    assert not pace.due
    time.now += 4.9
    assert not pace.due
    pace.spent(0.01)  # what is left of the rest before is not forgiven
    time.now += 0.2
    assert not pace.due
    time.now += 0.5
    assert pace.due
    time.now += 1000  # and a long rest is not saved up
    pace.spent(0.02)
    assert not pace.due
    pace.spent(3600)  # as when the process was stopped for an hour
    time.now += 60
    assert pace.due


def test_every_image_is_taken_in_where_there_is_time(convolutions_package):
    time = Time()
    local = EMARuntime(convolutions_package, method=EMA(momentum=0.1), elapsed_s=time)
    before = local.running
    for image in images(convolutions_package, 20):
        local.logits(image)
        assert local.running is not before
        assert not local.lags
        before = local.running
        time.now += 3600


def test_where_there_is_no_time_images_are_predicted_by_a_fused_network(convolutions_package):
    local = EMARuntime(convolutions_package, method=EMA(momentum=0.3, alpha=0.5, **HURRY), elapsed_s=Time(1e-3))
    first, *others = images(convolutions_package)
    local.logits(first)
    assert not local.lags  # it was due
    local.logits(others[0])
    assert local.lags
    local.fuse()
    assert not local.lags
    running = local.running
    expected = Runtime(convolutions_package, running.mixed_into(convolutions_package.source, 0.5))
    for image in others:
        np.testing.assert_allclose(local.logits(image), expected.logits(image), atol=1e-4)
    assert local.running is running
    assert not local.lags


@pytest.mark.parametrize("size", [1, 4, 32])
def test_where_nobody_fuses_every_image_is_taken_in(convolutions_package, size):
    time = Time(1e-3)
    local = EMARuntime(convolutions_package, method=EMA(momentum=0.01, **HURRY), elapsed_s=time)
    local.fuse()
    fused = 0
    for batch in batches(convolutions_package, 40, size):
        time.now += 3600  # one is due,
        local.logits(batch)
        before = local.running
        local.logits(batch)  # and one is not
        fused += local.running is before
    assert 1 <= fused <= 16  # as long as the fused network is not stale
    assert local.lags
    local.fuse()
    before = local.running
    local.logits(batch)
    assert local.running is before


def test_a_share_of_the_time_is_kept(convolutions_package, monkeypatch):
    """A pass takes 10 ms, or 16 where the image is taken in, and a session 30."""
    time = Time()

    class Slow(Runtime):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            time.now += 0.03

        def logits(self, batch):
            time.now += 0.01
            return super().logits(batch)

    run = OpenNetwork.run

    def slow(*arguments):
        time.now += 0.016
        return run(*arguments)

    monkeypatch.setattr(local_runtime, "Runtime", Slow)
    monkeypatch.setattr(OpenNetwork, "run", slow)
    local = EMARuntime(convolutions_package, method=EMA(share=0.02), elapsed_s=time)
    image = images(convolutions_package, 1)[0]
    passes = taken_in = sessions = 0
    while time.now < 160:
        before = local.running
        local.logits(image)
        passes += 1
        taken_in += local.running is not before
        if local.lags:
            local.fuse()
            sessions += 1
    assert 0.975 <= passes * 0.01 / 60 <= 0.99
    assert 80 <= taken_in <= 130
    assert taken_in / 9 <= sessions <= taken_in / 7


def test_images_that_had_to_be_taken_in_cost_no_rest(convolutions_package, monkeypatch):
    """A session that cannot be built for a while does not end the adaptation for hours."""
    time = Time()
    run = OpenNetwork.run

    def slow(*arguments):
        time.now += 0.01
        return run(*arguments)

    monkeypatch.setattr(OpenNetwork, "run", slow)
    local = EMARuntime(convolutions_package, method=EMA(share=0.01), elapsed_s=time)
    image = images(convolutions_package, 1)[0]
    local.logits(image)
    for _ in range(40):  # of the rest of 0.5 s
        local.logits(image)
    local.fuse()
    time.now += 0.11
    before = local.running
    local.logits(image)
    assert local.running is not before


def test_other_statistics_are_used_from_the_next_image_on(convolutions_package):
    local = EMARuntime(convolutions_package, method=EMA(alpha=0.5, **HURRY), elapsed_s=Time(1e-3))
    image, *others = images(convolutions_package, 5)
    local.logits(image)
    local.fuse()
    source = convolutions_package.source
    local.begin_with(Running(source["mean"] + 1, 2 * source["var"]))
    for other in others:
        expected = Runtime(convolutions_package, local.running.mixed_into(source, 0.5)).logits(other)
        np.testing.assert_allclose(local.logits(other), expected, atol=1e-4)


def test_another_thread_may_fuse(convolutions_package):
    local = EMARuntime(convolutions_package, method=EMA(momentum=0.3, alpha=0.5, share=1e-6), threads=1)
    image, *others = images(convolutions_package, 20)
    stop = threading.Event()

    def fuse():
        while not stop.wait(0.001):
            if local.lags:
                local.fuse()

    with ThreadPoolExecutor(1) as pool:
        fusing = pool.submit(fuse)
        try:
            deadline = time.monotonic() + 60
            moved = True
            while moved:
                assert time.monotonic() < deadline
                assert not fusing.done(), fusing.result()
                before = local.running
                assert np.isfinite(local.logits(image)).all()
                moved = local.running is not before
        finally:
            stop.set()
        fusing.result()
    local.fuse()
    expected = Runtime(convolutions_package, local.running.mixed_into(convolutions_package.source, 0.5))
    for other in others:
        np.testing.assert_allclose(local.logits(other), expected.logits(other), atol=1e-4)


def test_a_session_that_takes_long_to_build_is_used_all_the_same(convolutions_package, monkeypatch):
    """What must be taken in while it is built does not make it stale."""
    local = EMARuntime(convolutions_package, method=EMA(**HURRY), elapsed_s=Time(1e-3))
    image = images(convolutions_package, 1)[0]
    local.logits(image)

    class Slow(Runtime):
        def __init__(self, *arguments):
            for _ in range(40):
                local.logits(image)
            super().__init__(*arguments)

    monkeypatch.setattr(local_runtime, "Runtime", Slow)
    local.fuse()
    before = local.running
    local.logits(image)
    assert local.running is before
    assert not local.lags


def test_the_trial_of_new_parameters_costs_the_running_network_nothing(convolutions_package):
    time = Time(1e-3)
    local = EMARuntime(convolutions_package, method=EMA(momentum=0.3, **HURRY), elapsed_s=time)
    image, *others = images(convolutions_package, 9)
    local.logits(image)
    local.fuse()
    time.now += 61
    new = local.updated(moved(convolutions_package))
    running = local.running
    for other in others:
        new.logits(other)
    assert local.running is running
    new.go_on_from(local)
    assert new.running is running  # nothing of the trial stays
    new.logits(image)  # is due still
    assert new.running is not running


def test_new_parameters_are_not_predicted_with_by_the_old_fused_network(convolutions_package):
    local = EMARuntime(convolutions_package, method=EMA(alpha=0.0, **HURRY), elapsed_s=Time(1e-3))
    image = images(convolutions_package, 1)[0]
    local.logits(image)
    local.fuse()
    parameters = moved(convolutions_package)
    new = local.updated(parameters)
    new.go_on_from(local)
    expected = Runtime(convolutions_package, parameters).logits(image)
    np.testing.assert_allclose(new.logits(image), expected, atol=1e-4)
    assert new.lags
    new.fuse()
    running = new.running
    np.testing.assert_allclose(new.logits(image), expected, atol=1e-4)
    assert new.running is running  # fast again
    np.testing.assert_allclose(local.logits(image), Runtime(convolutions_package).logits(image), atol=1e-4)
