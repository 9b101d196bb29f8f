"""Where frames come from: a folder, a video file, a camera, the standard input.

A frame is an image as `EdgeClient.step` takes it. What cannot be decoded is a frame too, with the reason in place of
the image: the rest of the source goes on.
"""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from normstream.clients.edge.backoff import Backoff
from normstream.clients.edge.preprocessing import BROKEN, FORMATS

logger = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
STREAMS = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "udp://", "srt://")
LARGEST_JPEG_BYTES = 64 * 2**20

_OPEN_S, _SILENT_S = 10.0, 30.0  # after which a network camera is gone, though its connection may stay open
_MOST_FAILURES = 100  # in a row, after which no more of a video is tried
_MISSING_AV = 'video files and cameras need PyAV: pip install "normstream[edge,video]"'


class SourceError(Exception):
    """A source that cannot be opened; the message says what would be right."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One image of a source.

    Attributes:
        name: A file's name, or the number of the frame.
        image: The image; None when it could not be decoded.
        taken_at: When it was taken or read, in unix seconds.
        problem: Why there is no image.
    """

    name: str
    image: Image.Image | NDArray[np.uint8] | None
    taken_at: float
    problem: str | None = None


def open_source(
    source: str,
    *,
    watch: bool = False,
    every: int = 1,
    stdin: IO[bytes] | None = None,
    clock: Callable[[], float] = time.time,
) -> Iterator[Frame]:
    """Open a source by its name.

    Args:
        source: "-" or "stdin" for JPEG images one after another on the standard input; "camera" or "camera:N" for a
            camera of this machine; the address of a network camera; a folder of images; a video file.
        watch: Whether to wait for more files once a folder has been read.
        every: Take one frame of so many of a video or camera.
        stdin: What is read for "-".
        clock: Tells the time, in unix seconds.

    Raises:
        SourceError: There is no such source, or PyAV is not installed for it.
    """
    if source in {"-", "stdin"}:
        if stdin is None:
            raise SourceError("there is no standard input to read")
        return from_jpegs(stdin, clock)
    if source == "camera" or source.startswith("camera:"):
        device, driver = _camera(source)
        return _live(lambda: from_video(device, driver, every=every, clock=clock))
    if source.startswith(STREAMS):
        return _live(lambda: from_video(source, every=every, clock=clock))
    path = Path(source)
    if path.is_dir():
        return from_folder(path, watch=watch, clock=clock)
    if path.exists():
        return from_video(source, every=every, clock=clock)
    raise SourceError(f"{source} is no folder, video file, camera:N, address of a camera, or - for the standard input")


def from_folder(
    folder: Path,
    *,
    watch: bool = False,
    pause_s: float = 0.5,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Frame]:
    """Yield the images of a folder in order of name; with `watch`, those that come later too.

    A file that is still being written must have another suffix until it is whole, as is usual.
    """
    seen: set[Path] = set()
    while True:
        there = {path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()}
        for path in sorted(there - seen):
            yield _decoded(str(path.relative_to(folder)), path, clock())
        if not watch:
            return
        seen = there  # not a union: names of files that have gone need no memory
        sleep(pause_s)


def from_jpegs(stream: IO[bytes], clock: Callable[[], float] = time.time) -> Iterator[Frame]:
    """Yield the images of a stream of JPEG files one after another, as `ffmpeg -f mjpeg -` writes them."""
    for number, content in enumerate(split_jpegs(stream)):
        yield _decoded(str(number), io.BytesIO(content), clock())


def split_jpegs(stream: IO[bytes], chunk_bytes: int = 2**16) -> Iterator[bytes]:
    """Split a stream into its JPEG files; what lies between them is passed over, and so is an unfinished last one.

    The markers are followed, so that a thumbnail within a file's metadata does not end it.
    """
    read = getattr(stream, "read1", stream.read)  # what is there now, not only full chunks
    buffer = bytearray()
    while chunk := read(chunk_bytes):
        buffer += chunk
        while (end := _jpeg_end(buffer)) is not None:
            if end:
                yield bytes(buffer[:end])
                del buffer[:end]
            else:  # not the beginning of a file: go to where one may begin
                start = buffer.find(b"\xff\xd8", 1)
                del buffer[: start if start > 0 else max(1, len(buffer) - 1)]
        if len(buffer) > LARGEST_JPEG_BYTES:
            buffer.clear()


def _jpeg_end(data: bytearray) -> int | None:
    """Return where the file at the start of `data` ends; 0 when there is none, None when more must be read."""
    if len(data) < 4:
        return None
    if data[:2] != b"\xff\xd8":
        return 0
    at: int | None = 2
    while at is not None and at + 4 <= len(data):
        marker = data[at + 1] if data[at] == 0xFF else 0x00
        if marker == 0xD9:
            break
        if marker in {0x00, 0xD8}:
            return 0
        at = _after(data, at, marker)
    return at + 2 if at is not None and data[at : at + 2] == b"\xff\xd9" else None


def _after(data: bytearray, at: int, marker: int) -> int | None:
    """Return where what follows a marker and its segment stands; None when more must be read."""
    if marker == 0xFF:  # a fill byte
        return at + 1
    if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # no segment
        return at + 2
    end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return _scan_end(data, end) if marker == 0xDA else end


def _scan_end(data: bytearray, at: int) -> int | None:
    """Return where the next marker after compressed data stands: an FF that is not stuffing and no restart."""
    while (at := data.find(0xFF, at)) >= 0:
        if at + 1 >= len(data):
            return None
        if data[at + 1] != 0x00 and not 0xD0 <= data[at + 1] <= 0xD7:
            return at
        at += 2
    return None


def from_video(
    address: str, driver: str | None = None, *, every: int = 1, clock: Callable[[], float] = time.time
) -> Iterator[Frame]:
    """Yield one of `every` frames of a video file, a camera or a network camera, by PyAV.

    What cannot be decoded is passed over, up to a hundred times in a row: a source that only fails must end.
    """
    try:
        import av  # noqa: PLC0415 - an extra of its own
    except ModuleNotFoundError as error:
        raise SourceError(_MISSING_AV) from error
    patience = (_OPEN_S, _SILENT_S) if address.startswith(STREAMS) else None
    try:
        container = av.open(address, format=driver, timeout=patience)
    except av.error.ExitError as error:
        raise SourceError(f"cannot open {address}: nothing came for {_OPEN_S:g} s") from error
    except (OSError, ValueError) as error:  # PyAV's others are one or the other
        raise SourceError(f"cannot open {address}: {error}") from error
    if not container.streams.video:
        container.close()
        raise SourceError(f"{address} has no video")
    return _frames(container, every, clock)


def _frames(container: Any, every: int, clock: Callable[[], float]) -> Iterator[Frame]:
    import av  # noqa: PLC0415

    with closing(container):
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        decoded = container.decode(stream)
        number, failures = -1, 0
        while failures < _MOST_FAILURES:
            number += 1
            try:
                frame = next(decoded)
                image = frame.to_ndarray(format="rgb24") if number % every == 0 else None
            except (StopIteration, av.EOFError):
                return
            except av.FFmpegError as error:
                silent = isinstance(error, av.error.ExitError)  # what running out of patience is called there
                problem = f"nothing came for {_SILENT_S:g} s" if silent else f"cannot decode: {error}"
                yield Frame(str(number), None, clock(), problem)
                if not isinstance(error, av.InvalidDataError):  # it is not the frame that is broken, but the source
                    return
                failures += 1
                decoded = container.decode(stream)  # from the next packet: what has raised gives nothing more
                continue
            failures = 0
            if image is not None:
                yield Frame(str(number), image, clock())


def _live(open_camera: Callable[[], Iterator[Frame]]) -> Iterator[Frame]:
    return newest(reopened(open_camera(), open_camera))


def reopened(
    frames: Iterator[Frame],
    open_again: Callable[[], Iterator[Frame]],
    backoff: Backoff | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Frame]:
    """Yield the frames of a live source for ever: one that ends or fails is opened again later, until it can be."""
    backoff = backoff or Backoff()
    while True:
        try:
            for frame in frames:
                if frame.image is not None:
                    backoff.succeed()
                yield frame
        except Exception:  # of a driver or decoder; it must not look as if the source had come to its end
            logger.exception("the camera failed, and is opened again")
        sleep(backoff.pause_s())
        try:
            frames = open_again()
        except SourceError as error:
            logger.warning("%s", error)
            frames = iter(())
        except Exception:  # of a driver, likewise
            logger.exception("the camera cannot be opened")
            frames = iter(())


def newest(frames: Iterator[Frame]) -> Iterator[Frame]:
    """Yield the newest frame of a live source each time: those that came while the last one was looked at are left out.

    Else a camera that is faster than its edge would be seen later and later.
    """
    slot: list[Frame] = []
    changed = threading.Condition()
    ended = False

    def read() -> None:
        nonlocal ended
        try:
            for frame in frames:
                with changed:
                    slot[:] = [frame]
                    changed.notify()
                    if ended:
                        return
        finally:
            with changed:
                ended = True
                changed.notify()

    threading.Thread(target=read, name="normstream-camera", daemon=True).start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: slot or ended)
                if not slot:
                    return
                frame = slot.pop()
            yield frame
    finally:
        with changed:
            ended = True


def _camera(source: str) -> tuple[str, str]:
    number = source.partition(":")[2] or "0"
    if number.isdecimal():
        return f"/dev/video{number}", "v4l2"
    if number.startswith("/dev/"):
        return number, "v4l2"
    raise SourceError(f"{source} is no camera; give camera:0, camera:1, … or camera:/dev/NAME")


def _decoded(name: str, file: Path | IO[bytes], taken_at: float) -> Frame:
    try:
        with Image.open(file, formats=FORMATS) as image:
            image.load()
            return Frame(name, image, taken_at)
    except BROKEN as error:
        return Frame(name, None, taken_at, f"cannot decode: {error}")
