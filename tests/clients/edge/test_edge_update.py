import hashlib
import hmac
import json
import zlib

import numpy as np
import pytest
from hosted import moved
from hypothesis import given, settings
from hypothesis import strategies as st

from normstream.clients.edge.errors import BadSignature, CorruptUpdate, ForeignUpdate, StaleBase, UpdateRefused
from normstream.clients.edge.update import Held, decode, encode_full, sign

KEY = "k" * 43


def offsets_of(package, parameters, precision="float32"):
    return b"".join(
        (parameters[name] - package.source[name]).astype(precision).astype(f"<{np.dtype(precision).str[1:]}").tobytes()
        for name in package.manifest.tensors
    )


def made(package, offsets, key=KEY, base=None, logits=None, extra=b"", payload=None, **changes):
    """An update as its format is documented, written without the code under test."""
    manifest = package.manifest
    logits = np.zeros((2, manifest.classes), "<f4") if logits is None else logits
    sent = offsets if base is None else bytes(a ^ b for a, b in zip(offsets, base.offsets, strict=True))
    header = {
        "format": "normstream.update/1",
        "edge": "gate-3",
        "model": manifest.model,
        "fingerprint": manifest.fingerprint,
        "tag": "1.2",
        "base": None if base is None else base.tag,
        "codec": "full" if base is None else "delta",
        "precision": "float32",
        "tensors": {name: len(value) for name, value in package.source.items()},
        "digest": f"sha256:{hashlib.sha256(offsets).hexdigest()}",
        "created_at": 1_800_000_000.5,
        "probe": list(logits.shape),
        **changes,
    }
    packed = zlib.compress(logits.tobytes() + sent) if payload is None else payload
    body = json.dumps({k: v for k, v in header.items() if v is not ...}).encode() + b"\n" + packed + extra
    return body, f"hmac-sha256={hmac.new(key.encode(), body, hashlib.sha256).hexdigest()}"


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_full_update(package, precision):
    parameters = moved(package)
    probe = np.arange(14, dtype="<f4").reshape(2, 7)
    offsets = offsets_of(package, parameters, precision)
    update = decode(*made(package, offsets, logits=probe, precision=precision), KEY, package)
    assert (update.edge, update.tag, update.created_at) == ("gate-3", "1.2", 1_800_000_000.5)
    assert update.held == Held("1.2", precision, offsets)
    np.testing.assert_array_equal(update.probe, probe)
    for name, source in package.source.items():
        expected = source + (parameters[name] - source).astype(precision).astype(np.float32)
        np.testing.assert_array_equal(update.parameters[name], expected)
        assert update.parameters[name].dtype == np.float32


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_delta_gives_what_the_whole_gives(package, precision):
    first, second = (offsets_of(package, moved(package, seed), precision) for seed in (1, 2))
    held = decode(*made(package, first, tag="1.1", precision=precision), KEY, package).held
    whole = decode(*made(package, second, precision=precision), KEY, package, held)
    delta = decode(*made(package, second, base=held, precision=precision), KEY, package, held)
    assert delta.held == whole.held
    assert all(np.array_equal(delta.parameters[name], whole.parameters[name]) for name in package.source)


def test_a_model_with_layer_norms_alone(tokens_package):
    parameters = moved(tokens_package)
    update = decode(*made(tokens_package, offsets_of(tokens_package, parameters)), KEY, tokens_package)
    assert set(update.parameters) == {"weight", "bias"}
    np.testing.assert_allclose(update.parameters["weight"], parameters["weight"], atol=1e-6)


def test_tensors_come_in_the_order_that_the_header_gives(package):
    parameters = moved(package)
    order = ("var", "bias", "mean", "weight")
    offsets = b"".join((parameters[name] - package.source[name]).tobytes() for name in order)
    update = decode(*made(package, offsets, tensors=dict.fromkeys(order, 36)), KEY, package)
    for name in order:
        np.testing.assert_allclose(update.parameters[name], parameters[name], atol=1e-6)


def test_a_variance_below_zero_is_zero(package):
    parameters = moved(package)
    parameters["var"] = package.source["var"] - 10
    update = decode(*made(package, offsets_of(package, parameters)), KEY, package)
    np.testing.assert_array_equal(update.parameters["var"], 0)


def test_what_is_kept_on_disk_needs_no_other_version(package):
    first, second = (offsets_of(package, moved(package, seed), "float16") for seed in (1, 2))
    held = decode(*made(package, first, tag="1.1", precision="float16"), KEY, package).held
    delta = decode(*made(package, second, base=held, precision="float16"), KEY, package, held)
    again = decode(*encode_full(delta, KEY, package), KEY, package)
    assert again.held == delta.held
    assert (again.edge, again.created_at) == (delta.edge, delta.created_at)
    np.testing.assert_array_equal(again.probe, delta.probe)
    assert all(np.array_equal(again.parameters[name], delta.parameters[name]) for name in package.source)


@pytest.mark.parametrize("signature", [None, "", "hmac-sha256=", "hmac-sha256=00", "sha256=x", "schlüssel"])
def test_an_unsigned_update_is_refused(package, signature):
    body, _ = made(package, offsets_of(package, moved(package)))
    with pytest.raises(BadSignature):
        decode(body, signature, KEY, package)


def test_an_update_signed_with_another_key_is_refused_before_it_is_read(package):
    _, signature = made(package, offsets_of(package, moved(package)), key="x" * 43)
    with pytest.raises(BadSignature):
        decode(b"\x00garbage", signature, KEY, package)
    with pytest.raises(BadSignature):
        decode(*made(package, offsets_of(package, moved(package)), key="x" * 43), KEY, package)


@settings(max_examples=60)
@given(st.data())
def test_any_changed_byte_is_noticed(package, data):
    body, signature = made(package, offsets_of(package, moved(package)))
    position = data.draw(st.integers(0, len(body) - 1))
    changed = body[:position] + bytes([body[position] ^ data.draw(st.integers(1, 255))]) + body[position + 1 :]
    with pytest.raises(BadSignature):
        decode(changed, signature, KEY, package)
    with pytest.raises(BadSignature):
        decode(body[:position], signature, KEY, package)


@settings(max_examples=150)
@given(st.data())
def test_signed_nonsense_is_refused_by_name(package, data):
    """A server gone mad: whatever it signs, nothing else than a refusal comes of it, or parameters that are finite."""
    body, _ = made(package, offsets_of(package, moved(package)))
    start = data.draw(st.integers(0, len(body) - 1))
    body = body[:start] + data.draw(st.binary(max_size=40)) + body[start + data.draw(st.integers(0, 40)) :]
    try:
        update = decode(body, sign(body, KEY), KEY, package)
    except UpdateRefused:
        return
    assert all(np.isfinite(value).all() for value in update.parameters.values())


def test_an_update_of_another_model_is_foreign(package, tokens_package):
    other = made(tokens_package, offsets_of(tokens_package, moved(tokens_package)))
    with pytest.raises(ForeignUpdate, match=package.manifest.fingerprint):
        decode(*other, KEY, package)


def test_a_delta_to_what_is_not_held_is_stale(package):
    first, second = (offsets_of(package, moved(package, seed)) for seed in (1, 2))
    base = Held("1.1", "float32", first)
    delta = made(package, second, base=base)
    for held in (None, Held("1.0", "float32", first), Held("1.1", "float16", first)):
        with pytest.raises(StaleBase, match=r"builds on 1\.1"):
            decode(*delta, KEY, package, held)
    with pytest.raises(CorruptUpdate, match="digest"):  # the same name for other bytes
        decode(*delta, KEY, package, Held("1.1", "float32", second))
    with pytest.raises(CorruptUpdate, match="size"):
        decode(*delta, KEY, package, Held("1.1", "float32", first[:-4]))


CHANGES = {
    "another format": {"format": "normstream.update/2"},
    "no format": {"format": ...},
    "no tag": {"tag": ...},
    "codec": {"codec": "gzip"},
    "precision": {"precision": "int8"},
    "a tensor too few": {"tensors": {"weight": 36, "bias": 36}},
    "tensors as a list": {"tensors": [36, 36]},
    "other sizes": {"tensors": {"weight": 35, "bias": 37, "mean": 36, "var": 36}},
    "huge sizes": {"tensors": {"weight": 10**12, "bias": 36, "mean": 36, "var": 36}},
    "negative sizes": {"tensors": {"weight": -36, "bias": 36, "mean": 36, "var": 36}},
    "another digest": {"digest": "sha256:" + "0" * 64},
    "no time": {"created_at": float("nan")},
    "one row of logits": {"probe": [1, 7]},
    "logits of no shape": {"probe": [14]},
    "other classes": {"probe": [2, 8]},
    "bytes that do not unpack": {"payload": b"not zlib"},
    "too few bytes": {"payload": zlib.compress(b"few")},
    "an unpacking bomb": {"payload": zlib.compress(bytes(100_000_000), 1)},
    "bytes after the end": {"extra": b"more"},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_signed_but_wrong_is_corrupt(package, change):
    with pytest.raises(CorruptUpdate):
        decode(*made(package, offsets_of(package, moved(package)), **change), KEY, package)


@pytest.mark.parametrize("body", [b"", b"\n", b"{}\n", b"[1]\n", b"no json\n", b"[" * 100_000 + b"\n", b"x" * 2**21])
def test_what_has_no_header_is_corrupt(package, body):
    with pytest.raises(CorruptUpdate):
        decode(body, sign(body, KEY), KEY, package)


@pytest.mark.parametrize("where", ["parameters", "probe"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_corrupt(package, where, value):
    parameters, probe = moved(package), np.zeros((2, 7), "<f4")
    (probe if where == "probe" else parameters["bias"])[...] = value
    with pytest.raises(CorruptUpdate, match="NaN"):
        decode(*made(package, offsets_of(package, parameters), logits=probe), KEY, package)


def test_the_key_is_in_no_message(package):
    with pytest.raises(BadSignature) as caught:
        decode(b"{}\n", "hmac-sha256=1", KEY, package)
    assert KEY not in str(caught.value)
