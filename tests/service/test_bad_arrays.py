"""Bad NumPy arrays: wrong types, shapes, headers and values are refused and harm no stream."""

import io
import struct

import numpy as np
import pytest
from bad_requests import PREDICT, Case, array, case_id, check_told
from servers import SIZE, Api, check_problem, npy, tensors


def archive(*arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, *arrays)
    return file.getvalue()


def header(text: bytes, version: int = 1, data: bytes = b"\0" * 64) -> bytes:
    """A .npy file with a header of one's own."""
    text += b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + data


def described(shape: str, descr: str = "'<f4'") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()


def spoilt(value: float, image: int) -> bytes:
    array = tensors(3)
    array[image, 1, 80, 80] = value
    return npy(array)


ARRAYS = [
    *(
        Case(f"{name}", PREDICT, 422, ("body", "uint8 [B, H, W, 3]", "float32 [B, 3, H, W]", seen), array(npy(content)))
        for name, content, seen in (
            ("float64", np.zeros((1, *SIZE)), "float64 [1, 3, 160, 160]"),
            ("float16", np.zeros((1, *SIZE), np.float16), "float16"),
            ("int64 images", np.zeros((1, 8, 8, 3), np.int64), "int64"),
            ("big-endian", np.zeros((1, *SIZE), ">f4"), ">f4"),
            ("complex", np.zeros((1, 3, 8, 8), complex), "complex128"),
            ("records", np.zeros(3, [("a", "u1")]), "[3]"),
            ("no batch axis", np.zeros((8, 8, 3), np.uint8), "uint8 [8, 8, 3]"),
            ("channels first in uint8", np.zeros((1, 3, 8, 8), np.uint8), "uint8 [1, 3, 8, 8]"),
            ("four channels", np.zeros((1, 8, 8, 4), np.uint8), "uint8 [1, 8, 8, 4]"),
            ("no height", np.zeros((1, 0, 8, 3), np.uint8), "uint8 [1, 0, 8, 3]"),
            ("channels last in float32", np.zeros((1, 160, 160, 3), np.float32), "float32 [1, 160, 160, 3]"),
            ("a number", np.float32(5), "float32 []"),
            ("a void", np.zeros((1, 3, 8, 8), "V0"), "|V0"),
        )
    ),
    Case(
        "another size than the model's",
        PREDICT,
        422,
        ("[1, 3, 8, 8]", "160"),
        array(npy(np.zeros((1, 3, 8, 8), np.float32))),
    ),
    Case("no height in float32", PREDICT, 422, ("[1, 3, 0, 8]",), array(npy(np.zeros((1, 3, 0, 8), np.float32)))),
    *(
        Case(f"array: {name}", PREDICT, 422, ("not a NumPy array",), array(content))
        for name, content in {
            "no bytes": b"",
            "magic alone": b"\x93NUMPY",
            "cut header": npy(tensors())[:40],
            "cut data": npy(tensors())[:-5],
            "text": b"hello",
            "pickle": b"\x80\x04]\x94.",
            "objects": npy(np.array([{}], object)),
            "an archive": archive(tensors()),
            "a broken archive": b"PK\x03\x04" + b"\0" * 50,
            "a huge shape": header(described("(10**3, 3, 160, 160)")),
            "a shape beyond memory": header(described("(999999999999, 3, 160, 160)")),
            "a shape beyond integers": header(described("(99999999999999999999999, 3, 160, 160)")),
            "a negative shape": header(described("(-1, 3, 160, 160)")),
            "objects by header": header(described("(1,)", "'O'")),
            "unknown type": header(described("(1,)", "'<q77'")),
            "open bracket": header(b"{'descr': '<f4', 'shape': (1, 2"),
            "open string": header(b"'''"),
            "nested minus": header(b"-" * 5000 + b"1"),
            "nested brackets": header(b"(" * 4000),
            "unhashable key": header(b"{[]: 1}"),
            "a call": header(b"__import__('os').system('true')"),
            "zero bytes": header(b"\0\xff"),
            "no such version": header(described("(1,)"), 9),
        }.items()
    ),
    Case("array with a huge header", PREDICT, 422, ("not a NumPy array",), array(header(b" " * 500_000, 2))),
    *(
        Case(f"{value} in the third image", PREDICT, 422, ("images.2", "NaN or infinity"), array(spoilt(value, 2)))
        for value in (np.nan, np.inf, -np.inf)
    ),
    Case(
        "finite but too large",
        PREDICT,
        422,
        ("images.0", "overflow"),
        array(npy(np.full((1, *SIZE), 1e38, np.float32))),
    ),
    Case("the largest numbers", PREDICT, 422, ("overflow",), array(npy(np.full((1, *SIZE), 3.4e38, np.float32)))),
    Case("too large in one of three", PREDICT, 422, ("overflow",), array(spoilt(3e38, 1))),
]


@pytest.mark.parametrize("case", ARRAYS, ids=case_id)
def test_bad_input_is_told_and_harms_nothing(api: Api, unharmed: str, case: Case) -> None:
    check_told(api, unharmed, case)


@pytest.mark.parametrize("recipe", ["source", "alpha_bn"])
def test_values_that_overflow_change_nothing_where_no_state_would_show_it(api: Api, recipe: str) -> None:
    stream = api.make(recipe=recipe)
    before = api.show(stream)
    images = tensors(3)
    images[1] = 3e38
    problem = check_problem(api.step(stream, images), 422, "overflow")
    if recipe == "source":  # by which images do not meet
        assert [fault["where"] for fault in problem["errors"]] == ["images.1"]
    assert api.show(stream) == before
