"""Layouts of data, and what is refused about them."""

import numpy as np
import pytest
from made_up import arrays, cifar, photographs, picture
from PIL import Image

from normstream.adaptation.bench.datasets import find
from normstream.adaptation.bench.errors import BenchError


def folders(tmp_path, *names):
    for number, name in enumerate(names):
        (tmp_path / name).mkdir()
        picture(number).save(tmp_path / name / "a.png")
    return tmp_path


def test_photographs_are_cropped_as_the_model_wants_them(tmp_path):
    source = find(photographs(tmp_path / "photos"))
    hosted = source.host(None)
    data = source.load(hosted, 3)
    assert (data.pixels.shape, data.pixels.dtype) == ((3, 224, 224, 3), np.uint8)
    assert data.labels.tolist() == data.numbers.tolist() == [0, 2, 4]
    mean, std = (np.array(each) for each in (hosted.preprocessing.mean, hosted.preprocessing.std))
    served = hosted.preprocessing(Image.open(source.files[2]).convert("RGB"))
    assert np.allclose((data.pixels[1] / 255 - mean) / std, served.permute(1, 2, 0).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("cat", "dog"), (0, 1)),
        (("10", "9"), (10, 9)),
        (("n01440764", "n01484850"), (0, 2)),
    ],
)
def test_a_folder_for_each_class(tmp_path, names, labels):
    assert find(folders(tmp_path, *names)).labels == labels


def test_cifar(tmp_path):
    source = find(cifar(tmp_path / "cifar"))
    hosted = source.host(None)
    data = source.load(hosted, None)
    assert hosted.name == "source"
    assert (data.pixels.shape, data.pixels.dtype) == ((30, 32, 32, 3), np.uint8)
    assert data.labels.tolist() == [index % 10 for index in range(30)]
    assert find(tmp_path / "cifar/test.npz") == source
    assert source.load(hosted, 10).numbers.tolist() == list(range(0, 30, 3))


def test_the_digest_knows_the_data(tmp_path):
    source = find(cifar(tmp_path / "cifar"))
    hosted = source.host(None)
    assert source.load(hosted, None).digest == source.load(hosted, None).digest
    assert source.load(hosted, 29).digest != source.load(hosted, None).digest


def test_photographs_that_are_not_numbered(tmp_path):
    picture(0).save(tmp_path / "cat.jpg")
    with pytest.raises(BenchError, match=r"'cat.jpg' does not begin with its class index"):
        find(tmp_path)


def test_a_folder_of_no_class(tmp_path):
    with pytest.raises(BenchError, match="'n99999999' is no class"):
        find(folders(tmp_path, "n01440764", "n99999999"))


def test_nothing_there(tmp_path):
    with pytest.raises(BenchError, match="no images in"):
        find(tmp_path)
    with pytest.raises(BenchError, match="there is no"):
        find(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda a: a.pop("labels"), "labels"),
        (lambda a: a.update(labels=a["labels"][:-1]), "shapes"),
        (lambda a: a.update(labels=a["labels"] / 2), "shapes"),
        (lambda a: a.update(jpeg=a["jpeg"][:-1]), "offsets"),
        (lambda a: a.update(offsets=a["offsets"][::-1]), "offsets"),
        (lambda a: a.update(labels=np.array([None] * 30)), "pickle"),
        (lambda a: a.update(jpeg=np.zeros_like(a["jpeg"])), "cannot read image 0"),
        (lambda a: a.update(labels=a["labels"] + 1), "from 1 to 10"),
    ],
)
def test_a_wrong_npz(tmp_path, change, complaint):
    source = find(cifar(tmp_path / "cifar"))
    hosted = source.host(None)
    wrong = arrays()
    change(wrong)
    np.savez(source.path, **wrong)
    with pytest.raises(BenchError, match=complaint):
        source.load(hosted, None)


@pytest.mark.parametrize("content", [b"", b"no npz", b"PK\x03\x04cut"])
def test_no_npz_at_all(tmp_path, content):
    source = find(cifar(tmp_path / "cifar"))
    hosted = source.host(None)
    source.path.write_bytes(content)
    with pytest.raises(BenchError, match="is no npz"):
        source.load(hosted, None)


def test_more_images_than_there_are_is_all_of_them(tmp_path):
    source = find(cifar(tmp_path / "cifar"))
    assert len(source.load(source.host(None), 31).labels) == 30


def test_the_source_model_is_named_or_lies_beside_the_data(tmp_path):
    source = find(cifar(tmp_path / "cifar"))
    weights = tmp_path / "cifar/source.safetensors"
    weights.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(BenchError, match=r"0 \.safetensors files beside"):
        source.host(None)
    assert source.host(str(tmp_path / "elsewhere.safetensors")).name == "elsewhere"
    weights.write_bytes(b"nothing")
    with pytest.raises(BenchError, match="holds no weights"):
        source.host(None)


def test_an_unreadable_photograph(tmp_path):
    source = find(photographs(tmp_path / "photos"))
    source.files[1].write_bytes(b"no photograph")
    with pytest.raises(BenchError, match=r"cannot read .*001_n"):
        source.load(source.host(None), None)
