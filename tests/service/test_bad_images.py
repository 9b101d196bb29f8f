"""Bad images in every packing: each is named, none harms a stream, and the server goes on."""

import base64
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_requests import JSON, PREDICT, Case, array, case_id, check_told, raw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from servers import NPY, Api, check_problem, npy, tensors

from normstream.adaptation import Preprocessing
from normstream.service.errors import Problem
from normstream.service.images import Images, prepare


def photo(kind: str, size: tuple[int, int] = (64, 48), mode: str = "RGB", **options: Any) -> bytes:
    """An image file of random pixels."""
    noise = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and no more."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def odd_metadata() -> bytes:
    """A JPEG in whose EXIF data the resolution is a text."""
    exif = Image.Exif()
    exif[274], exif[282] = 6, 72.0  # It is turned upright, and its EXIF data are written anew.
    number, text = (struct.pack(">HHI", 282, kind, 1) for kind in (5, 2))
    whole = photo("JPEG", exif=exif)
    assert whole.count(number) == 1
    return whole.replace(number, text)


def bomb() -> bytes:
    """A whole PNG of 144 million pixels in a few kilobytes."""
    file = io.BytesIO()
    Image.new("L", (12_000, 12_000)).save(file, "PNG")
    return file.getvalue()


def form(*parts: tuple[str, bytes], end: bytes = b"--b--\r\n") -> dict[str, Any]:
    """A multipart body by hand: each part its headers and content."""
    body = b"".join(b"--b\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n" for head, content in parts)
    return {"content": body + end, "headers": {"Content-Type": "multipart/form-data; boundary=b"}}


def files(*contents: bytes, field: str = "images") -> dict[str, Any]:
    return {"files": [(field, (f"{n}.jpg", content)) for n, content in enumerate(contents)]}


JPEG, PNG, WEBP = photo("JPEG"), photo("PNG"), photo("WEBP", lossless=True)
BASE64 = base64.b64encode(JPEG).decode()


IMAGES = [
    Case("no body", PREDICT, 415, ("multipart/form-data", NPY, JSON)),
    Case("other Content-Type", PREDICT, 415, ("'image/jpeg'",), raw(JPEG, "image/jpeg")),
    Case("a url-encoded form", PREDICT, 415, ("urlencoded",), {"data": {"images": "x"}}),
    Case("no image in the form", PREDICT, 422, ("images", "at least one"), form()),
    Case("no image in JSON", PREDICT, 422, ("body.images",), {"json": {"images": []}}),
    Case("no image in an array", PREDICT, 422, ("images", "at least one"), array(npy(tensors(0)))),
    Case("a file of no bytes", PREDICT, 422, ("images.1", "empty"), files(JPEG, b"")),
    Case("odd metadata", PREDICT, 422, ("images.1", "broken"), files(JPEG, odd_metadata())),
    *(
        Case(f"{name} cut at {part}", PREDICT, 422, ("images.1",), files(PNG, content[: int(len(content) * part)]))
        for name, content in {"JPEG": JPEG, "PNG": PNG, "WebP": WEBP}.items()
        for part in (0.002, 0.02, 0.2, 0.5, 0.9, 0.98)
    ),
    *(
        Case(f"{name} is no image", PREDICT, 422, ("images.0", "not a JPEG, PNG, WEBP file"), files(content))
        for name, content in {
            "text": b"hello",
            "zip": b"PK\x03\x04" + b"\0" * 50,
            "GIF": photo("GIF"),
            "BMP": photo("BMP"),
            "TIFF": photo("TIFF"),
            "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            "EPS": photo("EPS"),
        }.items()
    ),
    Case("wrong field", PREDICT, 422, ("'image'", "'images'"), files(JPEG, field="image")),
    Case("one right and one wrong field", PREDICT, 422, ("'mask'",), {"files": {"images": JPEG, "mask": JPEG}}),
    Case("a text field", PREDICT, 422, ("no file", "'images'"), {"files": {"images": JPEG}, "data": {"note": "x"}}),
    Case("more files than allowed", PREDICT, 413, ("8",), files(*[JPEG] * 9)),
    Case("many more files", PREDICT, 413, ("8",), files(*[b"x"] * 2000)),
    Case("more in JSON", PREDICT, 413, ("9 images", "8"), {"json": {"images": [BASE64] * 9}}),
    Case("more in an array", PREDICT, 413, ("9 images", "8"), array(npy(np.zeros((9, 8, 8, 3), np.uint8)))),
    Case("no boundary", PREDICT, 400, ("multipart",), raw(b"--b\r\n", "multipart/form-data")),
    Case("another boundary", PREDICT, 400, ("multipart",), form() | raw(b"--c\r\n", "multipart/form-data; boundary=b")),
    Case("a part without a name", PREDICT, 400, ("multipart",), form(("Content-Disposition: form-data", b"x"))),
    Case("a part without headers", PREDICT, 400, ("multipart",), form(("", b"x"))),
    Case("rubbish as a form", PREDICT, 400, ("multipart",), raw(b"\0\1\2", "multipart/form-data; boundary=b")),
    Case(
        "a form that breaks off in a part",
        PREDICT,
        400,
        ("multipart",),
        form(
            ('Content-Disposition: form-data; name="images"; filename="a"', JPEG),
            ('Content-Disposition: form-data; name="images"; filename="b"', JPEG),
            end=b"",
        ),
    ),
    Case("wrong base64", PREDICT, 422, ("images.1", "base64"), {"json": {"images": [BASE64, "%%%"]}}),
    Case(
        "base64 with spaces",
        PREDICT,
        422,
        ("images.0", "base64"),
        {"json": {"images": [BASE64[:50] + " " + BASE64[50:]]}},
    ),
    Case("base64 cut short", PREDICT, 422, ("images.0", "base64"), {"json": {"images": [BASE64[:41]]}}),
    Case("base64 in unicode", PREDICT, 422, ("images.0", "base64"), {"json": {"images": ["ü"]}}),
    Case(
        "a data URL", PREDICT, 422, ("images.0", "base64"), {"json": {"images": ["data:image/jpeg;base64," + BASE64]}}
    ),
    *(
        Case(f"JSON of another shape: {text}", PREDICT, 422, ("body",), raw(text))
        for text in (
            '{"images": "x"}',
            "[]",
            "null",
            '{"images": [1]}',
            '{"images": [null]}',
            '{"image": ["x"]}',
            '{"images": ["x"], "a": 1}',
        )
    ),
    *(
        Case(f"broken JSON for images: {text[:20]!r}", PREDICT, 400, ("JSON",), raw(text))
        for text in (
            b"",
            b"{",
            b'{"images": [',
            b"\xff",
            b"[" * 100_000,
            rb'{"images": ["\ud800"]}',
            b'{"images": ["\xff"]}',
        )
    ),
    Case(
        "pixels over the limit", PREDICT, 413, ("images.0", "60000x60000", "4000000"), files(png_header(60_000, 60_000))
    ),
    Case(
        "pixels over the limit together", PREDICT, 413, ("images.1", "1900x1900"), files(*[png_header(1900, 1900)] * 2)
    ),
    Case("a bomb in base64", PREDICT, 413, ("images.0",), {"json": {"images": [base64.b64encode(bomb()).decode()]}}),
    Case("a line of pixels", PREDICT, 422, ("images.0", "20000x1", "100"), files(photo("PNG", (20_000, 1)))),
    Case("a column of pixels", PREDICT, 422, ("images.0", "1x500", "100"), files(photo("PNG", (1, 500)))),
    Case("a line in an array", PREDICT, 422, ("images.0", "300x2"), array(npy(np.zeros((1, 2, 300, 3), np.uint8)))),
]


@pytest.mark.parametrize("case", IMAGES, ids=case_id)
def test_bad_input_is_told_and_harms_nothing(api: Api, unharmed: str, case: Case) -> None:
    check_told(api, unharmed, case)


def test_a_bad_image_is_named_by_its_index(api: Api, unharmed: str) -> None:
    path = f"/v1/streams/{unharmed}/predict"
    problem = check_problem(api.post(path, **files(JPEG, PNG, WEBP[:200])), 422)
    assert [fault["where"] for fault in problem["errors"]] == ["images.2"]


@pytest.mark.parametrize("how", ["form", "base64"])
def test_a_bomb_is_refused_before_it_is_decoded(api: Api, unharmed: str, how: str) -> None:
    content, path = bomb(), f"/v1/streams/{unharmed}/predict"
    body = files(content) if how == "form" else {"json": {"images": [base64.b64encode(content).decode()]}}
    check_problem(api.post(path, **files(JPEG[:100])), 422)  # so that all code is loaded
    Path("/proc/self/clear_refs").write_text("5")  # the server lives in this process; its peak begins anew
    before = peak_bytes()
    check_problem(api.post(path, **body), 413, "12000x12000")
    assert peak_bytes() - before < 30e6  # decoded it has 144 MB, and three times that in colour


def peak_bytes() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


# What files may hold is endless, so the decoder is also tried without the server around it.


def with_exif(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a camera"
    return photo(kind, (24, 16), exif=exif)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # which tells that it skips a damaged tag
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    file=st.sampled_from([with_exif(kind) for kind in ("JPEG", "PNG", "WEBP")] + [photo("PNG", (24, 16), "P")]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    end=st.floats(0.05, 1),
)
def test_damaged_files_are_read_or_refused(file: bytes, changes: list[tuple[float, int]], end: float) -> None:
    damaged = bytearray(file)
    for place, value in changes:
        damaged[int(place * len(file))] = value
    images = Images(files=(bytes(damaged[: int(end * len(file))]),))
    try:
        tensor = prepare(images, Preprocessing(input_size=(3, 16, 16)), 4_000_000)
    except Problem as problem:
        refused = problem
    else:
        assert tensor.shape == (1, 3, 16, 16)
        return
    assert refused.status in {413, 422}
    assert "images.0" in refused.detail
