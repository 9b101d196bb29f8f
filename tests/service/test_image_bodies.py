"""Images in every packing and mode: the same pixels give the same prediction."""

import base64
import io
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from servers import CLASSES, NPY, Api, npy

from normstream.adaptation import Preprocessing

NOISE = np.random.default_rng(3)
SCENE = np.asarray(Image.fromarray(NOISE.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((200, 150)))


def file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(content: bytes) -> np.ndarray:
    """What a file shows, by Pillow's own conversion."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.fixture
def stream(api: Api) -> str:
    return api.make()


def predict(api: Api, stream: str, **request: Any) -> list[float]:
    """The logits of one image."""
    answer = api.post(f"/v1/streams/{stream}/predict", params={"adapt": False, "output": "logits"}, **request)
    assert answer.status_code == 200, answer.text
    (prediction,) = answer.json()["predictions"]
    return prediction["values"]


def by_file(api: Api, stream: str, content: bytes) -> list[float]:
    return predict(api, stream, files={"images": content})


def by_pixels(api: Api, stream: str, array: np.ndarray) -> list[float]:
    return predict(api, stream, content=npy(array[None]), headers={"Content-Type": NPY})


FILES = {
    "JPEG": file(Image.fromarray(SCENE), "JPEG"),
    "PNG": file(Image.fromarray(SCENE)),
    "WebP": file(Image.fromarray(SCENE), "WEBP"),
    "lossless WebP": file(Image.fromarray(SCENE), "WEBP", lossless=True),
    "progressive JPEG": file(Image.fromarray(SCENE), "JPEG", progressive=True),
    "interlaced palette": file(Image.fromarray(SCENE).quantize(40)),
    "palette that is transparent": file(Image.fromarray(SCENE).quantize(40), transparency=0),
    "greyscale PNG": file(Image.fromarray(SCENE).convert("L")),
    "greyscale JPEG": file(Image.fromarray(SCENE).convert("L"), "JPEG"),
    "black and white": file(Image.fromarray(SCENE).convert("1")),
    "grey with alpha": file(Image.fromarray(SCENE).convert("LA")),
    "RGBA PNG": file(Image.fromarray(np.dstack([SCENE, SCENE[..., :1]]))),
    "RGBA WebP": file(Image.fromarray(np.dstack([SCENE, SCENE[..., :1]])), "WEBP", lossless=True),
    "CMYK JPEG": file(Image.fromarray(SCENE).convert("CMYK"), "JPEG"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_as_its_pixels_in_every_packing(api: Api, stream: str, name: str) -> None:
    content = FILES[name]
    expected = by_pixels(api, stream, pixels(content))
    assert by_file(api, stream, content) == expected
    assert predict(api, stream, json={"images": [base64.b64encode(content).decode()]}) == expected
    prepared = preprocessing(api)(Image.fromarray(pixels(content))).numpy()
    assert by_pixels(api, stream, prepared) == expected


def preprocessing(api: Api) -> Preprocessing:
    model = api.get("/v1/models/tiny").json()
    return Preprocessing(input_size=model["input_size"], **model["preprocessing"])


def test_files_that_differ_are_told_apart(api: Api, stream: str) -> None:
    """Else the tests above would prove nothing."""
    answers = [by_file(api, stream, FILES[name]) for name in ("PNG", "greyscale PNG", "black and white", "CMYK JPEG")]
    assert len({tuple(answer) for answer in answers}) == 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_camera_s_orientation_is_honoured(api: Api, stream: str, kind: str, orientation: int) -> None:
    turned = {
        1: lambda x: x,
        2: np.fliplr,
        3: lambda x: np.rot90(x, 2),
        4: np.flipud,
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
        8: np.rot90,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    content = file(Image.fromarray(SCENE), kind, exif=exif, **options)
    assert by_file(api, stream, content) == by_pixels(api, stream, np.ascontiguousarray(turned(pixels(content))))


def test_sixteen_bits_are_scaled_and_not_clipped(api: Api, stream: str) -> None:
    grey = SCENE[..., 0]
    deep = file(Image.fromarray(grey.astype(np.uint16) << 8 | 77))
    assert Image.open(io.BytesIO(deep)).mode.startswith("I")
    assert by_file(api, stream, deep) == by_pixels(api, stream, np.dstack([grey] * 3))


def test_images_of_any_sizes_go_together_and_in_order(api: Api, stream: str) -> None:
    contents = [FILES["PNG"], file(Image.fromarray(SCENE[:9, :31])), file(Image.fromarray(SCENE[::2]), "JPEG")]
    files = [("images", (f"{n}", content)) for n, content in enumerate(contents)]
    query = {"adapt": False, "output": "logits"}
    source = api.make(recipe="source")  # whose answers do not depend on the other images
    answer = api.post(f"/v1/streams/{source}/predict", files=files, params=query).json()
    for prediction, content in zip(answer["predictions"], contents, strict=True):
        np.testing.assert_allclose(prediction["values"], by_file(api, source, content), atol=1e-4)


def test_a_fortran_ordered_array_is_the_same_array(api: Api, stream: str) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.asfortranarray(SCENE[None]))
    answer = predict(api, stream, content=buffer.getvalue(), headers={"Content-Type": NPY})
    assert answer == by_pixels(api, stream, SCENE)


# Answers


def ask(api: Api, stream: str, accept: str = "*/*", **query: Any) -> httpx.Response:
    headers = {"Content-Type": NPY, "Accept": accept}
    content = npy(np.stack([SCENE, SCENE[::-1]]))
    return api.post(f"/v1/streams/{stream}/predict", content=content, headers=headers, params={"adapt": False, **query})


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def test_outputs_agree_with_each_other(api: Api, stream: str) -> None:
    logits, probs = (
        np.array([each["values"] for each in ask(api, stream, output=output).json()["predictions"]])
        for output in ("logits", "probs")
    )
    assert logits.shape == probs.shape == (2, CLASSES)
    np.testing.assert_allclose(probs, softmax(logits), atol=1e-6)
    for image, row in zip(ask(api, stream, top_k=3).json()["predictions"], probs, strict=True):
        assert set(image) == {"sample", "entropy", "top"}
        assert [each["class"] for each in image["top"]] == np.argsort(-row, kind="stable")[:3].tolist()
        assert [each["probability"] for each in image["top"]] == pytest.approx(np.sort(row)[::-1][:3].tolist())
        assert image["entropy"] == pytest.approx(-np.sum(row * np.log(row)), abs=1e-5)


def test_a_model_without_labels_says_so(api: Api, stream: str) -> None:
    (first, *_) = ask(api, stream).json()["predictions"]
    assert all(each["label"] is None for each in first["top"])


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (5, 5), (7, 7), (100, 7)])
def test_top_k_is_at_most_all(api: Api, stream: str, asked: int, given: int) -> None:
    assert [len(each["top"]) for each in ask(api, stream, top_k=asked).json()["predictions"]] == [given] * 2


@pytest.mark.parametrize("output", ["topk", "probs", "logits"])
def test_an_array_is_answered_when_asked_for(api: Api, stream: str, output: str) -> None:
    answer = ask(api, stream, NPY, output=output)
    assert answer.headers["Content-Type"] == NPY
    array = np.load(io.BytesIO(answer.content))
    assert (array.dtype, array.shape) == (np.float32, (2, CLASSES))
    values = ask(api, stream, output="logits" if output == "logits" else "probs").json()["predictions"]
    np.testing.assert_array_equal(array, np.array([each["values"] for each in values], np.float32))
    headers = {name: answer.headers[f"Normstream-{name}"] for name in ("Step", "Version", "Adapted")}
    assert headers == {"Step": "0", "Version": "1", "Adapted": "false"}
    adapted = ask(api, stream, NPY, adapt=True).headers
    assert [adapted[f"Normstream-{name}"] for name in headers] == ["1", "2", "true"]


def test_without_adaptation_all_stays(api: Api, stream: str) -> None:
    api.post(f"/v1/streams/{stream}/predict", files={"images": FILES["PNG"]})
    before, state = api.show(stream), api.state(stream)
    answers = [ask(api, stream).json() for _ in range(2)]
    ids = {each.pop("sample") for answer in answers for each in answer["predictions"]}
    assert answers[0] == answers[1]
    assert len(ids) == 2 * len(answers[0]["predictions"])
    assert api.show(stream) == before
    assert api.state(stream) == state
    assert ask(api, stream, adapt=True).status_code == 200
    assert api.state(stream) != state


def test_the_content_type_may_have_parameters_and_capitals(api: Api, stream: str) -> None:
    kind = {"Content-Type": "Application/JSON; charset=utf-8"}
    body = f'{{"images": ["{base64.b64encode(FILES["PNG"]).decode()}"]}}'
    assert predict(api, stream, content=body, headers=kind) == by_pixels(api, stream, SCENE)
