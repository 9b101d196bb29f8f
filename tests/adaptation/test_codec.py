"""States as bytes: whole, unchanged and of the right model, or refused with the reason."""

import json
import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import coloured
from safetensors.torch import save
from small_net import host_small, images

from normstream.adaptation import (
    PRESETS,
    ForeignStateError,
    Recipe,
    Request,
    StateError,
    StreamState,
    admit,
    decode,
    decode_learnt,
    encode,
    encode_learnt,
    initial_state,
    learn,
    step,
)


@pytest.fixture(scope="module")
def data(small) -> bytes:
    (result,) = step(small, [Request(initial_state(small, PRESETS["ema"]), images(3))])
    return encode(result.state)


def remade(state: StreamState, **changes) -> StreamState:
    fields = {name: getattr(state, name) for name in ("model", "fingerprint", "recipe", "step", "tensors")}
    return StreamState(**fields | changes)


def test_encoding_is_deterministic(data):
    assert encode(decode(data)) == data


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 10_000))
def test_truncated_bytes_are_refused(small, cut):
    data = encode(initial_state(small, PRESETS["ema"]))
    with pytest.raises(StateError, match="safetensors file, or cut short"):
        decode(data[: cut % len(data)])


@settings(max_examples=200, deadline=None)
@given(where=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed(small, where, bit):
    data = bytearray(encode(initial_state(small, PRESETS["ema"])))
    data[where % len(data)] ^= 1 << bit
    with pytest.raises(StateError):
        decode(bytes(data))


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=400))
def test_any_bytes_are_refused(data):
    with pytest.raises(StateError):
        decode(data)


def header(content: object) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100_000_001) + b"{" * 100,
        header({"norm.mean": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}) + b"\0" * 4,
        header({"norm.mean": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**60]}}) + b"\0" * 4,
        header({"norm.mean": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}) + b"\0" * 4,
        header([]),
        b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93.",
    ],
)
def test_hostile_bytes_are_refused(hostile):
    with pytest.raises(StateError):
        decode(hostile)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("", "format is None"),
        ("[1]", "format is None"),
        ("{broken", "format is None"),
        ("[" * 100_000, "format is None"),
        ('{"format": "normstream.state/9"}', "expected 'normstream.state/1'"),
        ('{"format": "normstream.state/1"}', "the digest does not match"),
        ('{"format": "normstream.state/1", "digest": "0"}', "the digest does not match"),
    ],
)
def test_headers_that_are_not_ours_are_refused(header, reason):
    with pytest.raises(StateError, match=reason):
        decode(save({"norm.mean": torch.zeros(1)}, {"normstream": header}))


def test_safetensors_without_our_header_are_refused():
    with pytest.raises(StateError, match="format is None"):
        decode(save({"norm.mean": torch.zeros(1)}))


def test_a_state_of_another_model_is_refused_naming_both(small, data):
    other = host_small(seed=1)
    with pytest.raises(ForeignStateError) as caught:
        admit(decode(data), other)
    assert small.fingerprint in str(caught.value)
    assert other.fingerprint in str(caught.value)


def test_a_state_of_another_recipe_is_refused_naming_both(small, data):
    with pytest.raises(ForeignStateError, match=r'recipe .*"ema".*and this is .*"bn1"'):
        admit(decode(data), small, PRESETS["bn1"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: {"norm.mean": t["norm.mean"]}, "expected"),
        (lambda t: t | {"norm.extra": torch.zeros(1)}, "norm.extra"),
        (lambda t: t | {"norm.mean": t["norm.mean"][:-1]}, "norm.mean is torch.float32"),
        (lambda t: t | {"norm.mean": t["norm.mean"].double()}, "torch.float64"),
        (lambda t: t | {"norm.mean": t["norm.mean"] / 0}, "not finite"),
        (lambda t: t | {"norm.var": t["norm.var"] - 10}, "negative variance"),
    ],
)
def test_tensors_that_the_recipe_does_not_make_are_refused(small, data, change, reason):
    state = decode(data)
    with pytest.raises(StateError, match=reason):
        admit(decode(encode(remade(state, tensors=change(state.tensors)))), small)


@pytest.mark.parametrize("step", [-1, True, 1.5, 2**52, "1"])
def test_a_step_that_is_no_count_is_refused(data, step):
    with pytest.raises(StateError, match=f"step is {step!r}"):
        decode(encode(remade(decode(data), step=step)))


LEARNING = Recipe.parse({"norm": {"name": "ema"}, "learn": {"replay": {"keep": "images"}}})


@pytest.fixture(scope="module")
def learnt(small) -> StreamState:
    labels = ["red", "blue", "red"]
    return learn(small, initial_state(small, LEARNING), coloured(labels), labels).state


def test_what_was_learnt_travels_with_the_rest_or_alone(learnt):
    rest, alone = encode(replace(learnt, learnt=None)), encode_learnt(learnt)
    assert (
        encode(replace(decode(rest), learnt=decode_learnt(alone))) == encode(learnt) == encode(decode(encode(learnt)))
    )
    assert decode(rest).learnt is None
    assert len(rest) < len(alone) < len(encode(learnt))
    assert encode_learnt(decode(encode(learnt))) == alone


def test_who_learns_nothing_has_nothing_to_encode(small):
    with pytest.raises(ValueError, match="learns nothing from labels"):
        encode_learnt(initial_state(small, PRESETS["ema"]))


@settings(max_examples=60, deadline=None)
@given(where=st.integers(0, 100_000), bit=st.integers(0, 7))
def test_what_was_learnt_is_refused_when_cut_or_changed(learnt, where, bit):
    data = bytearray(encode_learnt(learnt))
    with pytest.raises(StateError):
        decode_learnt(bytes(data[: where % len(data)]))
    data[where % len(data)] ^= 1 << bit
    with pytest.raises(StateError):
        decode_learnt(bytes(data))


def test_states_and_what_was_learnt_are_not_taken_for_each_other(learnt):
    with pytest.raises(StateError, match=r"format is 'normstream\.learnt/1', expected 'normstream\.state/1'"):
        decode(encode_learnt(learnt))
    with pytest.raises(StateError, match=r"format is 'normstream\.state/1', expected 'normstream\.learnt/1'"):
        decode_learnt(encode(learnt))


def test_what_was_learnt_otherwise_or_elsewhere_is_refused(small, learnt):
    other = initial_state(small, Recipe.parse({"norm": {"name": "ema"}, "learn": {}})).learnt
    with pytest.raises(ForeignStateError, match="what was learnt is of model"):
        admit(replace(learnt, learnt=other), small)
    with pytest.raises(ForeignStateError, match="what was learnt is of model sha256:0"):
        admit(replace(learnt, learnt=replace(learnt.learnt, fingerprint="sha256:0")), small)
    with pytest.raises(StateError, match="what was learnt from labels is missing"):
        admit(replace(learnt, learnt=None), small)
    plain = initial_state(small, PRESETS["ema"])
    with pytest.raises(StateError, match="it holds what was learnt from labels, and its recipe"):
        admit(replace(plain, learnt=learnt.learnt), small)
    smuggled = replace(plain, tensors=plain.tensors | {"learn.steps": torch.tensor(0)})
    with pytest.raises(StateError, match=r"learn\.steps"):
        admit(decode(encode(smuggled)), small)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"head.bias": torch.zeros(3)}, "head.bias is torch.float32"),
        ({"head.bias": torch.full((7,), torch.nan)}, "not finite"),
        ({"steps": torch.tensor(-1)}, "steps is -1, which counts nothing"),
        ({"replay.labels": torch.tensor([0, 0, 7])}, "labels that are none of the 7 classes"),
        ({"classes.names": torch.zeros(3, dtype=torch.uint8)}, "no list of different texts"),
    ],
)
def test_damage_to_what_was_learnt_is_refused(small, learnt, change, reason):
    damaged = replace(learnt.learnt, tensors=learnt.learnt.tensors | change)
    with pytest.raises(StateError, match=f"what was learnt is damaged: .*{reason}"):
        admit(decode(encode(replace(learnt, learnt=damaged))), small)


def test_slots_must_fit_the_classes_that_were_learnt(small):
    recipe = Recipe.parse({"output": {"name": "prior"}, "learn": {}})
    new = initial_state(small, recipe)
    grown = learn(small, new, coloured(["red"]), ["red"]).state
    with pytest.raises(StateError, match=r"output.frequencies is torch.float32 \(5,\), expected torch.float32 \(6,\)"):
        admit(replace(grown, tensors=new.tensors), small)
