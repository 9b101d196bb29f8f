import base64
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_sdk_images import JPEG, pixels

from normstream.clients import InvalidArgument, Label
from normstream.clients.labels import encode_labels, of_images

SAMPLE = "9f1c2b7a5d3e4f60-0"


def entries(payload):
    """The labels of a body that is JSON."""
    assert payload.content_type == "application/json"
    (entries,) = json.loads(payload.body).values()
    return entries


def parts(payload):
    """The images and the labels of a body that is multipart."""
    boundary = payload.content_type.removeprefix("multipart/form-data; boundary=").encode()
    blocks = [block[2:-2].split(b"\r\n\r\n", 1) for block in payload.body.split(b"--" + boundary)[1:-1]]
    files = [body for head, body in blocks if b'name="images"; filename=' in head]
    (labels,) = (body for head, body in blocks if head == b'Content-Disposition: form-data; name="labels"')
    assert len(files) + 1 == len(blocks)
    return files, json.loads(labels)


@pytest.mark.parametrize(
    "labels",
    [{SAMPLE: "zebra"}, {SAMPLE: "zebra"}.items(), [(SAMPLE, "zebra")], [Label(sample=SAMPLE, label="zebra")]],
    ids=["mapping", "view", "pairs", "values"],
)
def test_labels_of_samples_in_any_form(labels):
    assert entries(encode_labels(labels)) == [{"sample": SAMPLE, "label": "zebra"}]


@pytest.mark.parametrize("number", [340, np.int64(340)])
def test_a_class_by_its_number(number):
    assert entries(encode_labels({SAMPLE: number})) == [{"sample": SAMPLE, "class": 340}]


@pytest.mark.parametrize("number", [340, np.int64(340)])
def test_a_class_by_name_and_number(number):
    label = Label(sample=SAMPLE, label="zebra", index=number)
    assert entries(encode_labels([label])) == [{"sample": SAMPLE, "label": "zebra", "class": 340}]


def test_images_travel_as_files(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    files, labels = parts(encode_labels([(tmp_path / "a.jpg", "zebra"), (b"other", 7), (JPEG, "okapi")]))
    assert files == [JPEG, b"other", JPEG]
    assert labels == [{"label": "zebra"}, {"class": 7}, {"label": "okapi"}]


def test_a_path_as_text_is_a_file_where_it_says_so(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(JPEG)
    assert parts(encode_labels([Label(image=str(path), label="zebra")])) == ([JPEG], [{"label": "zebra"}])


def test_an_array_travels_without_loss(tmp_path):
    (content,), _ = parts(encode_labels([(pixels(), "zebra")]))
    (tmp_path / "sent.png").write_bytes(content)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "sent.png")), pixels())


def test_images_among_samples_travel_within_json_in_their_places():
    first, second, third = entries(encode_labels([(b"one", "zebra"), (SAMPLE, "okapi"), (b"two", 3)]))
    assert second == {"sample": SAMPLE, "label": "okapi"}
    assert (base64.b64decode(first["image"]), first["label"]) == (b"one", "zebra")
    assert (base64.b64decode(third["image"]), third["class"]) == (b"two", 3)


@pytest.mark.parametrize("labels", [{SAMPLE: "zebra"}, [(JPEG, "zebra")], [(SAMPLE, "zebra"), (JPEG, "okapi")]])
def test_the_same_labels_give_the_same_bytes(labels):
    assert encode_labels(labels) == encode_labels(labels)


@pytest.mark.parametrize(
    "images",
    [[JPEG, b"other"], np.stack([pixels(), pixels(seed=1)]), [pixels(), pixels(9)]],
    ids=["files", "batch", "arrays"],
)
def test_images_are_joined_with_their_classes(images):
    labels = of_images(images, ["zebra", 7])
    assert [(label.label, label.index) for label in labels] == [("zebra", None), (None, 7)]
    np.testing.assert_array_equal(labels[1].image, images[1])


def test_one_image_is_joined_with_its_class(tmp_path):
    (label,) = of_images(str(tmp_path / "a.jpg"), ["zebra"])
    assert (label.image, label.sample) == (str(tmp_path / "a.jpg"), None)


@pytest.mark.parametrize("classes", [["zebra"], ["zebra"] * 3, [], "ab"])
def test_as_many_classes_as_images(classes):
    with pytest.raises(InvalidArgument, match=r"2 images have the classes .* one for each"):
        of_images([JPEG, JPEG], classes)


def test_preprocessed_images_are_refused():
    with pytest.raises(InvalidArgument, match=r"float32 \[1, 3, 8, 8\]"):
        encode_labels(of_images(np.ones((1, 3, 8, 8), np.float32), ["zebra"]))


@pytest.mark.parametrize("fields", [{}, {"sample": SAMPLE, "image": JPEG}])
def test_a_label_is_of_one_image(fields):
    with pytest.raises(InvalidArgument, match="either `sample` or `image`"):
        Label(label="zebra", **fields)


def test_a_label_names_a_class():
    with pytest.raises(InvalidArgument, match="`label`, `index` or both"):
        Label(sample=SAMPLE)


@pytest.mark.parametrize("labels", [{}, []])
def test_no_labels_are_refused(labels):
    with pytest.raises(InvalidArgument, match="labels is empty"):
        encode_labels(labels)


@pytest.mark.parametrize("labels", [SAMPLE, b"ab", 3, None])
def test_what_holds_no_labels_is_refused(labels):
    with pytest.raises(InvalidArgument, match=r"labels is a .*; give a mapping, pairs"):
        encode_labels(labels)


@pytest.mark.parametrize("item", [SAMPLE, (SAMPLE,), (SAMPLE, "zebra", 340), 3, None])
def test_what_is_no_pair_is_refused(item):
    with pytest.raises(InvalidArgument, match=r"labels\[1\] is a .*; give a pair"):
        encode_labels([(SAMPLE, "zebra"), item])


@pytest.mark.parametrize("index", [True, 3.5, "340"])
def test_an_index_is_a_number(index):
    with pytest.raises(InvalidArgument, match=r"a label has the index .*; give the class's number"):
        Label(sample=SAMPLE, index=index)


@pytest.mark.parametrize("shown", [None, 3.5, True, ["zebra"]])
def test_what_is_no_class_is_refused(shown):
    with pytest.raises(InvalidArgument, match=r"labels\[0\] has the class .*; give its name or its number"):
        encode_labels({SAMPLE: shown})


@pytest.mark.parametrize("image", [Path("nowhere.jpg"), b"", np.zeros((4, 4), np.uint8), 3])
def test_what_is_no_image_is_refused(image):
    with pytest.raises(InvalidArgument, match=r"images\[0\]"):
        encode_labels([(SAMPLE, "zebra"), (image, "zebra")])
