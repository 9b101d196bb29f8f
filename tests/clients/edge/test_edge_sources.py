import io
import os
import socket
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from normstream.clients.edge import sources
from normstream.clients.edge.backoff import Backoff
from normstream.clients.edge.sources import (
    Frame,
    SourceError,
    from_folder,
    from_jpegs,
    from_video,
    newest,
    open_source,
    reopened,
    split_jpegs,
)


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def jpeg(seed: int, **options) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def with_thumbnail(seed: int) -> bytes:
    """A JPEG whose metadata hold another whole JPEG, as cameras write them."""
    whole, thumbnail = jpeg(seed), jpeg(seed + 1)
    segment = b"Exif\0\0" + thumbnail
    return whole[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + whole[2:]


FILES = [
    jpeg(0),
    jpeg(1, progressive=True),
    with_thumbnail(2),
    jpeg(3, restart_marker_rows=1),
    jpeg(4, quality=100, optimize=True),
]


class Chunks(io.RawIOBase):
    """A pipe that hands out pieces of a size of its own."""

    def __init__(self, content: bytes, size: int) -> None:
        self.rest = content
        self.size = size

    def read(self, _: int = -1) -> bytes:
        piece, self.rest = self.rest[: self.size], self.rest[self.size :]
        return piece


@pytest.mark.parametrize("size", [1, 7, 1000, 2**20])
def test_a_stream_of_jpegs_is_split_where_they_end(size):
    assert list(split_jpegs(Chunks(b"".join(FILES), size))) == FILES


def test_what_is_between_the_files_is_passed_over():
    stream = b"junk" + FILES[0] + b"\r\n--boundary\r\n\xff" + FILES[2] + b"\n" + FILES[1][:-50]
    assert list(split_jpegs(io.BytesIO(stream))) == [FILES[0], FILES[2]]


@given(st.binary(max_size=200), st.integers(1, 50))
def test_no_bytes_upset_the_splitter_and_it_finds_what_comes_after(junk, size):
    junk = junk.replace(b"\xff", b"\xfe")
    assert list(split_jpegs(Chunks(junk + FILES[0], size))) == [FILES[0]]


@given(st.binary(max_size=300))
def test_hostile_bytes_end(junk):
    list(split_jpegs(io.BytesIO(b"\xff\xd8" + junk)))


def test_a_broken_image_of_a_stream_is_a_frame_without_an_image():
    broken = b"\xff\xd8\xff\xda\x00\x02nothing\xff\xd9"
    frames = list(from_jpegs(io.BytesIO(FILES[0] + broken + FILES[1]), clock=lambda: 5.0))
    assert [frame.image is None for frame in frames] == [False, True, False]
    assert [frame.name for frame in frames] == ["0", "1", "2"]
    assert "cannot decode" in frames[1].problem
    assert frames[0].taken_at == 5.0
    np.testing.assert_array_equal(np.asarray(frames[2].image), np.asarray(Image.open(io.BytesIO(FILES[1]))))


def test_a_pipe_is_not_waited_for_longer_than_an_image_takes():
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stream, os.fdopen(write, "wb", buffering=0) as end:
        frames = open_source("-", stdin=stream)
        end.write(FILES[0])
        assert next(frames).name == "0"
        end.write(FILES[1])
        assert next(frames).name == "1"


def test_a_folder_gives_its_images_by_name(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("z.png", "a.JPG", "b/c.webp"):
        path = tmp_path / name
        picture(0).save(path, {".JPG": "JPEG", ".png": "PNG", ".webp": "WEBP"}[path.suffix])
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "m.png").write_bytes(b"broken")
    frames = list(open_source(str(tmp_path)))
    assert [(frame.name, frame.image is not None) for frame in frames] == [
        ("a.JPG", True),
        ("b/c.webp", True),
        ("m.png", False),
        ("z.png", True),
    ]


def test_no_file_starts_a_program_whatever_its_name(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    ghostscript = tmp_path / "bin/gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # it is looked for anew
    (tmp_path / "images").mkdir()
    picture(0).save(tmp_path / "images/x.jpg", "EPS")
    (frame,) = from_folder(tmp_path / "images")
    assert "cannot decode" in frame.problem
    assert not (tmp_path / "started").exists()


def test_a_file_with_metadata_that_pillow_trips_over_costs_itself_alone(tmp_path):
    picture(0).save(tmp_path / "a.tif")
    content = (tmp_path / "a.tif").read_bytes()
    number, text = (struct.pack("<HHI", 273, kind, 1) for kind in (4, 2))  # where its pixels are: a text
    assert content.count(number) == 1
    (tmp_path / "b.tif").write_bytes(content.replace(number, text))
    picture(1).save(tmp_path / "c.png")
    with pytest.raises(TypeError), Image.open(tmp_path / "b.tif") as image:
        image.load()
    assert [frame.problem is None for frame in from_folder(tmp_path)] == [True, False, True]


def test_a_watched_folder_gives_what_comes_later(tmp_path):
    picture(0).save(tmp_path / "1.png")
    pauses = []

    def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        picture(len(pauses)).save(tmp_path / f"{len(pauses) + 1}.png")

    frames = from_folder(tmp_path, watch=True, pause_s=3, sleep=sleep)
    assert [next(frames).name for _ in range(3)] == ["1.png", "2.png", "3.png"]
    assert pauses == [3, 3]
    frames.close()


def video(path: Path, frames: int = 10, noise: int = 0) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(frames):
            pixels = np.full((48, 64, 3), 20 * i % 250, np.uint8) + np.random.default_rng(i).integers(
                0, noise + 1, (48, 64, 3), np.uint8
            )
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def test_a_video_gives_its_frames(tmp_path):
    frames = list(open_source(str(video(tmp_path / "v.mp4"))))
    assert [frame.name for frame in frames] == [str(i) for i in range(10)]
    assert all(frame.image.shape == (48, 64, 3) and frame.image.dtype == np.uint8 for frame in frames)
    assert np.allclose([frame.image.mean() for frame in frames], 20 * np.arange(10), atol=3)


def test_one_frame_of_so_many_is_taken(tmp_path):
    frames = open_source(str(video(tmp_path / "v.mp4")), every=4)
    assert [frame.name for frame in frames] == ["0", "4", "8"]


def test_a_video_that_breaks_off_ends(tmp_path):
    path = video(tmp_path / "v.mkv", frames=30, noise=200)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 0 < len([frame for frame in open_source(str(path)) if frame.image is not None]) < 30


def damaged(path: Path, numbers: range) -> Path:
    """A video of which some packets are overwritten."""
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for i in numbers:
        at = content.index(packets[i][:64])
        content[at : at + 64] = bytes(64)
    path.write_bytes(content)
    return path


def test_a_video_goes_on_after_frames_that_cannot_be_decoded(tmp_path):
    frames = list(from_video(str(damaged(video(tmp_path / "v.avi", noise=200), range(3, 5)))))
    assert [frame.name for frame in frames] == [str(i) for i in range(10)]
    assert [i for i, frame in enumerate(frames) if frame.image is None] == [3, 4]
    assert "cannot decode" in frames[3].problem


def test_a_video_that_only_fails_ends(tmp_path, monkeypatch):
    path = str(damaged(video(tmp_path / "v.avi", noise=200), range(1, 10)))
    monkeypatch.setattr(sources, "_MOST_FAILURES", 5)
    assert [frame.image is None for frame in from_video(path)] == [False] + [True] * 5


@pytest.mark.parametrize(
    ("source", "word"),
    [("nowhere", "nowhere is no folder"), ("camera:front", "camera:0"), ("camera:/dev/normstream-none", "cannot open")],
)
def test_a_source_that_is_none_is_refused_with_what_would_be_right(source, word):
    with pytest.raises(SourceError, match=word):
        open_source(source)


def test_a_file_that_is_no_video_is_refused(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"no video")
    with pytest.raises(SourceError, match="cannot open"):
        open_source(str(tmp_path / "v.mp4"))


def test_the_newest_frame_of_a_camera_is_taken():
    reading, seen = threading.Event(), threading.Event()

    def camera():
        yield Frame("0", None, 0)
        seen.wait(5)
        for i in range(1, 100):
            yield Frame(str(i), None, 0)
        reading.set()

    frames = newest(camera())
    assert next(frames).name == "0"
    seen.set()
    assert reading.wait(5)
    assert next(frames).name == "99"
    assert list(frames) == []


def test_a_camera_that_nobody_looks_at_any_more_is_left():
    left = threading.Event()

    def camera():
        try:
            while True:
                time.sleep(0.001)
                yield Frame("0", None, 0)
        finally:
            left.set()

    frames = newest(camera())
    next(frames)
    frames.close()
    assert left.wait(5)


def test_a_camera_that_goes_away_is_opened_again(tmp_path):
    path = str(video(tmp_path / "v.mp4", frames=2))
    pauses = []
    opened = iter([SourceError("away"), SourceError("away"), None])

    def open_again():
        if error := next(opened):
            raise error
        return from_video(path)

    frames = reopened(from_video(path), open_again, Backoff(uniform=lambda _, high: high), pauses.append)
    assert [next(frames).name for _ in range(4)] == ["0", "1", "0", "1"]
    assert pauses == [1, 2, 4]
    frames.close()


def test_a_camera_that_falls_silent_is_opened_again(monkeypatch):
    """Its connection stays open, as when somebody pulls the cable."""
    monkeypatch.setattr(sources, "_SILENT_S", 0.5)
    image = b"--f\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg(0) + b"\r\n"
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def camera():
            with suppress(OSError):
                while True:
                    connections.append(listener.accept()[0])
                    connections[-1].recv(4096)
                    head = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=f\r\n\r\n"
                    connections[-1].sendall(head + 30 * image)

        thread = threading.Thread(target=camera)
        thread.start()
        frames = open_source(f"http://127.0.0.1:{listener.getsockname()[1]}/live.mjpg")
        seen = [next(frames)]
        while len(connections) < 3:
            seen.append(next(frames))
        frames.close()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    for each in connections:
        each.close()
    assert {frame.problem for frame in seen} == {None, "nothing came for 0.5 s"}


def test_a_camera_that_says_nothing_at_all_is_refused(monkeypatch):
    monkeypatch.setattr(sources, "_OPEN_S", 0.3)
    silence = pytest.raises(SourceError, match=r"cannot open http://.*: nothing came for 0\.3 s")
    with socket.create_server(("127.0.0.1", 0)) as listener, silence:  # its system accepts
        open_source(f"http://127.0.0.1:{listener.getsockname()[1]}/live.mjpg")


def test_a_camera_whose_driver_fails_is_opened_again(tmp_path, caplog):
    path = str(video(tmp_path / "v.mp4", frames=2))
    opened = iter([True, False])

    def open_again():
        if next(opened, False):
            raise RuntimeError("no such device any more")
        return from_video(path)

    def failing():
        yield from from_video(path)
        raise RuntimeError("the driver is confused")

    frames = reopened(failing(), open_again, sleep=lambda _: None)
    assert [next(frames).name for _ in range(4)] == ["0", "1", "0", "1"]
    assert "the driver is confused" in caplog.text
    assert "no such device any more" in caplog.text
    frames.close()


def test_a_camera_that_gives_nothing_but_errors_is_opened_again_later_and_later():
    pauses = []
    broken = Frame("0", None, 0.0, "cannot decode")
    backoff = Backoff(uniform=lambda _, high: high)
    frames = reopened(iter([broken]), lambda: iter([broken]), backoff, pauses.append)
    for _ in range(4):
        next(frames)
    assert pauses == [1, 2, 4]
    frames.close()
