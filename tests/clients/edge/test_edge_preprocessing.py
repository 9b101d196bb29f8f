import io

import numpy as np
import pytest
import skimage.data
from PIL import Image

from normstream.adaptation import Preprocessing as Served
from normstream.clients.edge.errors import BadImage
from normstream.clients.edge.preprocessing import Preprocessing, crop, decode, normalise, preprocess
from normstream.service.images import Images, prepare

CONFIGURATIONS = [
    Served(),
    Served(interpolation="bilinear", crop_pct=0.95),
    Served(input_size=(3, 33, 33), crop_pct=1.0, interpolation="lanczos"),
    Served(input_size=(3, 97, 131), crop_pct=0.9),
    Served(crop_mode="squash", crop_pct=0.9, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    Served(crop_mode="border", crop_pct=0.9),
    Served(crop_mode="border", input_size=(3, 60, 100), crop_pct=1.0, interpolation="bilinear"),
]
SHAPES = [(1, 1), (1, 60), (5, 3), (31, 32), (32, 33), (223, 225), (224, 224), (255, 256), (256, 256), (257, 511)]
SHAPES += [(600, 60), (40, 1000), (479, 641)]


def of(served: Served) -> Preprocessing:
    return Preprocessing.parse(served.model_dump(mode="json"))


def photographs():
    return [getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")]


def file(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file(Image.fromarray(photographs()[1]), "JPEG", exif=exif)


@pytest.mark.parametrize("served", CONFIGURATIONS, ids=repr)
def test_photographs_of_any_shape_as_on_the_server_pixel_by_pixel(served):
    for photograph in photographs():
        for height, width in [photograph.shape[:2], *SHAPES]:
            image = Image.fromarray(photograph[:height, :width]).resize((width, height))
            expected = np.moveaxis(np.asarray(served._to_pixels(image)), 0, 2)
            np.testing.assert_array_equal(crop(image, of(served)), expected)
            np.testing.assert_array_equal(preprocess([image], of(served))[0], served(image).numpy())


def files() -> dict[str, bytes]:
    photograph = Image.fromarray(photographs()[1])
    grey16 = np.asarray(photograph.convert("L")).astype(np.uint16) * 257
    transparent = photograph.convert("RGBA")
    transparent.putalpha(photograph.convert("L"))
    return {
        **{f"exif {orientation}": rotated(orientation) for orientation in range(1, 9)},
        "grey": file(photograph.convert("L"), "JPEG"),
        "grey png": file(photograph.convert("L"), "PNG"),
        "grey, alpha": file(photograph.convert("LA"), "PNG"),
        "one bit": file(photograph.convert("1"), "PNG"),
        "rgba": file(transparent, "PNG"),
        "rgba webp": file(transparent, "WEBP"),
        "cmyk": file(photograph.convert("CMYK"), "JPEG"),
        "palette": file(photograph.quantize(64), "PNG"),
        "16 bit": file(Image.fromarray(grey16), "PNG"),
        "webp": file(photograph, "WEBP", quality=80),
        "progressive": file(photograph, "JPEG", progressive=True, quality=70),
    }


@pytest.mark.parametrize(("content"), [pytest.param(content, id=name) for name, content in files().items()])
def test_files_of_any_kind_as_by_the_server(content):
    for served in CONFIGURATIONS[::3]:
        expected = prepare(Images(files=(content,)), served, max_pixels=10**7).numpy()
        np.testing.assert_array_equal(preprocess([content], of(served)), expected)


def test_an_image_may_come_in_any_form(tmp_path):
    pixels = photographs()[0]
    path = tmp_path / "photograph.png"
    path.write_bytes(file(Image.fromarray(pixels), "PNG"))
    forms = [path, str(path), path.read_bytes(), pixels, Image.fromarray(pixels)]
    batch = preprocess(forms, of(Served()))
    assert batch.shape == (5, 3, 224, 224)
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    assert all(np.array_equal(batch[0], other) for other in batch[1:])


def test_one_batch_holds_images_of_many_sizes():
    batch = preprocess(photographs(), of(Served()))
    apart = [preprocess([each], of(Served()))[0] for each in photographs()]
    np.testing.assert_array_equal(batch, apart)


def test_a_crop_is_normalised_alike_whether_stacked_or_not():
    crops = [crop(decode(each), of(Served())) for each in photographs()]
    np.testing.assert_array_equal(normalise(crops, of(Served())), normalise(np.stack(crops), of(Served())))


def test_pixels_given_are_left_as_they_are():
    pixels = photographs()[0]
    before = pixels.copy()
    preprocess([pixels], of(Served()))
    np.testing.assert_array_equal(pixels, before)


def with_confused_metadata() -> bytes:
    """A JPEG file in whose metadata a number stands where text should be."""
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    content = file(Image.fromarray(photographs()[0]), "JPEG", exif=exif)
    return content.replace(b"\x01\x1a\x00\x05", b"\x01\x4d\x00\x05", 1)


@pytest.mark.parametrize(
    "source",
    [
        b"",
        b"no image",
        file(Image.fromarray(photographs()[0]), "JPEG")[:3000],
        file(Image.fromarray(photographs()[0]), "PNG")[:-2000],
        np.zeros((4, 4, 3), np.float64),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((3, 301, 3), np.uint8),
        with_confused_metadata(),
        "/nowhere/image.jpg",
        3,
    ],
    ids=["empty", "text", "cut jpeg", "cut png", "floats", "no rows", "a line", "metadata", "no file", "a number"],
)
def test_what_is_no_image_is_refused(source):
    with pytest.raises(BadImage):
        decode(source)


def test_an_unknown_filter_is_refused():
    with pytest.raises(ValueError, match="interpolation"):
        of(Served(interpolation="wavelet"))
