"""How parameters travel to an edge: whatever way, every edge computes the same ones."""

import hashlib
import hmac
import json
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normstream.service.updates import Precision, Release, body, offsets, rebuilt, signature

CHANNELS = {"weight": 5, "bias": 5, "mean": 3, "var": 3}
EDGE = {"edge": "gate", "model": "lite0", "fingerprint": "sha256:1"}


def parameters(seed: int = 0, names: tuple[str, ...] = tuple(CHANNELS), scale: float = 1.0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: (scale * random.random(CHANNELS[name])).astype(np.float32) for name in names}


def release(source: dict[str, np.ndarray], seed: int, precision: Precision, tag: str = "ab.2") -> Release:
    data, precision = offsets(parameters(seed, tuple(source)), source, precision)
    probe = np.random.default_rng(seed).standard_normal((2, 7)).astype(np.float32)
    return Release(tag, precision, {name: len(values) for name, values in source.items()}, 12.5, data, probe)


def read(content: bytes, base: bytes | None = None) -> tuple[dict[str, Any], bytes, bytes]:
    """The header, the probe's logits and the offsets of an update, as an edge reads them."""
    line, _, payload = content.partition(b"\n")
    header, plain = json.loads(line), zlib.decompress(payload)
    cut = 4 * int(np.prod(header["probe"]))
    probe, data = plain[:cut], plain[cut:]
    if header["codec"] == "delta":
        data = bytes(a ^ b for a, b in zip(data, base, strict=True))
    assert header["digest"] == "sha256:" + hashlib.sha256(data).hexdigest()
    return header, probe, data


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("names", [("weight", "bias"), tuple(CHANNELS)])
def test_an_edge_rebuilds_what_the_server_does(precision: Precision, names: tuple[str, ...]) -> None:
    source = parameters(1, names)
    sent = release(source, 2, precision)
    header, probe, data = read(body(sent, None, **EDGE))
    assert {**header, **EDGE} == header
    assert (header["format"], header["tag"], header["base"], header["codec"]) == (
        "normstream.update/1",
        "ab.2",
        None,
        "full",
    )
    assert list(header["tensors"].items()) == [(name, CHANNELS[name]) for name in names]
    assert (header["precision"], header["created_at"], header["probe"]) == (precision, 12.5, [2, 7])
    assert probe == sent.probe.tobytes()
    served = rebuilt(source, data, precision)
    near = 1e-3 if precision is Precision.FLOAT16 else 1e-6
    for name, values in parameters(2, names).items():
        assert served[name].dtype == np.float32
        np.testing.assert_allclose(served[name], values, atol=near)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 99), st.integers(0, 99), st.sampled_from(list(Precision)))
def test_a_difference_and_the_whole_give_the_same_bits(first: int, second: int, precision: Precision) -> None:
    source = parameters(1)
    base, new = release(source, first, precision, "ab.1"), release(source, second, precision)
    _, probe, data = read(body(new, base, **EDGE), base.offsets)
    assert (probe, data) == read(body(new, None, **EDGE))[1:]


def test_a_difference_is_sent_when_it_is_smaller_and_names_its_base() -> None:
    source = parameters(1)
    base = release(source, 2, Precision.FLOAT32, "ab.1")
    near = np.frombuffer(base.offsets, "<f4").copy()
    near[3] += 1
    new = Release("ab.2", base.precision, base.tensors, 13.0, near.tobytes(), base.probe)
    header, _, data = read(body(new, base, **EDGE), base.offsets)
    assert (header["codec"], header["base"]) == ("delta", "ab.1")
    assert data == near.tobytes()
    assert len(body(new, base, **EDGE)) < len(body(new, None, **EDGE))


@pytest.mark.parametrize("changed", ["precision", "tensors"])
def test_a_base_of_another_kind_is_not_built_upon(changed: str) -> None:
    source = parameters(1)
    other = (
        release(source, 2, Precision.FLOAT32)
        if changed == "precision"
        else release(parameters(1, ("weight", "bias")), 2, Precision.FLOAT16)
    )
    header, _, _ = read(body(release(source, 2, Precision.FLOAT16), other, **EDGE))
    assert (header["codec"], header["base"]) == ("full", None)


def test_what_is_too_far_for_16_bits_goes_in_32() -> None:
    source, far = parameters(1), parameters(2)
    far["var"][1] = 70_000.0
    data, precision = offsets(far, source, Precision.FLOAT16)
    assert precision is Precision.FLOAT32
    np.testing.assert_array_equal(rebuilt(source, data, precision)["var"][1], np.float32(70_000.0))
    far["var"][1] = 65_000.0
    assert offsets(far, source, Precision.FLOAT16)[1] is Precision.FLOAT16


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("precision", Precision)
def test_what_is_not_finite_is_never_sent(value: float, precision: Precision) -> None:
    broken = parameters(2)
    broken["bias"][0] = value
    with pytest.raises(ValueError, match="not finite"):
        offsets(broken, parameters(1), precision)


def test_rounding_makes_no_variance_negative() -> None:
    source, wanted = parameters(1), parameters(2)
    source["var"][:], wanted["var"][:] = 2.0005, 0.0
    data, precision = offsets(wanted, source, Precision.FLOAT16)
    assert (rebuilt(source, data, precision)["var"] >= 0).all()


def test_a_release_comes_back_from_the_store_as_it_was() -> None:
    kept = release(parameters(1), 2, Precision.FLOAT16)
    back = Release.unpack(kept.pack())
    assert (back.tag, back.precision, back.tensors, back.created_at, back.offsets) == (
        kept.tag,
        kept.precision,
        kept.tensors,
        kept.created_at,
        kept.offsets,
    )
    np.testing.assert_array_equal(back.probe, kept.probe)


def test_the_signature_is_of_the_whole_body_by_the_key() -> None:
    content = body(release(parameters(1), 2, Precision.FLOAT16), None, **EDGE)
    expected = hmac.new(b"secret", content, "sha256").hexdigest()
    assert signature("secret", content) == f"hmac-sha256={expected}"
    assert signature("other", content) != signature("secret", content)
    assert signature("secret", content[:-1]) != signature("secret", content)
