import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from normstream.clients.errors import InvalidArgument
from normstream.clients.images import NPY, encode

JPEG = b"\xff\xd8\xff\xe0 as good as any"


def parts(payload):
    """Return the names, file names and contents of a multipart body."""
    boundary = payload.content_type.removeprefix("multipart/form-data; boundary=").encode()
    blocks = payload.body.split(b"--" + boundary)
    assert blocks[0] == b""
    assert blocks[-1] == b"--\r\n"
    heads = [block[2:-2].split(b"\r\n\r\n", 1) for block in blocks[1:-1]]
    names = [re.search(rb'name="(.*?)"; filename="(.*?)"', head).groups() for head, _ in heads]
    return [(field.decode(), file.decode(), body) for (field, file), (_, body) in zip(names, heads, strict=True)]


def array_of(payload):
    assert payload.content_type == NPY
    return np.load(io.BytesIO(payload.body), allow_pickle=False)


def pixels(height=4, width=5, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_travels_as_it_is(tmp_path, kind):
    (tmp_path / "a b.jpg").write_bytes(JPEG)
    assert parts(encode(kind(tmp_path / "a b.jpg"))) == [("images", "a b.jpg", JPEG)]


def test_bytes_travel_as_they_are():
    assert parts(encode(JPEG)) == [("images", "image-0", JPEG)]


def test_one_array_is_a_batch_of_one():
    np.testing.assert_array_equal(array_of(encode(pixels())), pixels()[None])


def test_equal_arrays_are_stacked():
    batch = [pixels(seed=0), pixels(seed=1)]
    np.testing.assert_array_equal(array_of(encode(batch)), np.stack(batch))


@pytest.mark.parametrize("batch", [np.zeros((2, 4, 5, 3), np.uint8), np.ones((2, 3, 8, 8), np.float32)])
def test_a_batch_travels_as_npy(batch):
    sent = array_of(encode(batch))
    assert sent.dtype == batch.dtype
    np.testing.assert_array_equal(sent, batch)


def test_a_strided_batch_travels_in_c_order():
    batch = np.asfortranarray(np.random.default_rng(0).random((2, 3, 4, 4), np.float32))
    sent = array_of(encode(batch))
    assert sent.flags.c_contiguous
    np.testing.assert_array_equal(sent, batch)


def test_mixed_images_keep_their_order(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    sent = parts(encode([pixels(), tmp_path / "a.jpg", b"other"]))
    assert [name for _, name, _ in sent] == ["image-0.png", "a.jpg", "image-2"]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sent[0][2]))), pixels())


@given(st.lists(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))), min_size=1, max_size=3))
def test_arrays_of_any_sizes_arrive_unchanged(images):
    payload = encode(images)
    if payload.content_type == NPY:
        arrived = list(array_of(payload))
    else:
        arrived = [np.asarray(Image.open(io.BytesIO(body)).convert("RGB")) for _, _, body in parts(payload)]
    assert len(arrived) == len(images)
    for image, sent in zip(arrived, images, strict=True):
        np.testing.assert_array_equal(image, sent)


def test_the_same_images_give_the_same_bytes():
    images = [JPEG, pixels()]
    assert encode(images) == encode(images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "images is empty; give at least one"),
        (3, "images is a int; give paths"),
        ([3], r"images\[0\] is a int; give a path"),
        (b"", r"images\[0\] is empty"),
        ([JPEG, b""], r"images\[1\] is empty"),
        ("nowhere.jpg", r"images\[0\]: cannot read nowhere.jpg: No such file"),
        ("nul\0byte", r"images\[0\]: cannot read .*null byte"),
        (np.zeros((2, 4, 4, 3)), r"float64 \[2, 4, 4, 3\]; give uint8"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"uint8 \[2, 3, 4, 4\]; give"),
        (np.zeros((2, 4, 4, 3), np.float32), r"float32 \[2, 4, 4, 3\]; give"),
        (np.zeros((0, 4, 4, 3), np.uint8), r"\[0, 4, 4, 3\]; .*at least one image"),
        (np.zeros((4, 4), np.uint8), r"uint8 \[4, 4\]; give"),
        (np.zeros((3, 4, 4), np.float32), r"images\[0\] is an array float32 \[3, 4, 4\]; one image is"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \[4, 4, 4\]; one image is uint8 \[H, W, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \[0, 4, 3\]"),
        ([np.zeros((1, 4, 4, 3), np.uint8)], r"images\[0\] is an array uint8 \[1, 4, 4, 3\]"),
        (np.array("text"), r"<U4 \[\]; give"),
    ],
)
def test_wrong_images_are_refused(images, message):
    with pytest.raises(InvalidArgument, match=message):
        encode(images)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(InvalidArgument, match="Is a directory"):
        encode(tmp_path)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(InvalidArgument, match=r"the file .*a.jpg is empty"):
        encode([tmp_path / "a.jpg"])
