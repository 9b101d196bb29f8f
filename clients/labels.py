"""What images show, as people say it later: in any form a caller has it, as the body of one request."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias

from normstream.clients.call import JSON
from normstream.clients.errors import InvalidArgument
from normstream.clients.images import Image, Images, Payload, Pixels, as_files, multipart, one_by_one


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Label:
    """What one image shows; the image is one that was predicted, or comes along.

    Attributes:
        sample: The id that the prediction gave the image.
        image: The image: a file's path or content, or a uint8 array `[H, W, 3]`.
        label: The class's name.
        index: The class's number; with a name too, the server checks that they belong together.
    """

    sample: str | None = None
    image: Image | None = None
    label: str | None = None
    index: int | None = None

    def __post_init__(self) -> None:
        if (self.sample is None) == (self.image is None):
            raise InvalidArgument("a label is of one image; give either `sample` or `image`")
        if self.label is None and self.index is None:
            raise InvalidArgument("a label names a class; give `label`, `index` or both")
        if not (self.index is None or _is_number(self.index)):
            raise InvalidArgument(f"a label has the index {self.index!r}; give the class's number")


Class: TypeAlias = str | int  # its name, or its number
Pair: TypeAlias = tuple[str | os.PathLike[str] | bytes | Pixels, Class]  # a sample's id or an image, and what it shows
Labels: TypeAlias = Mapping[str, Class] | Iterable[Label | Pair]


def of_images(images: Images, classes: Sequence[Class]) -> list[Label]:
    """Join images with what they show.

    Raises:
        InvalidArgument: There are not as many of the one as of the other.
    """
    items = one_by_one(images)
    if isinstance(classes, str) or len(classes) != len(items):
        raise InvalidArgument(f"{len(items)} images have the classes {classes!r}; give a list with one for each")
    return [
        Label(image=image, **_named(shown, position))
        for position, (image, shown) in enumerate(zip(items, classes, strict=True))
    ]


def encode_labels(labels: Labels) -> Payload:
    """Encode labels; the same ones give the same bytes.

    Images travel as files where all labels bring theirs, and within JSON where some name a sample.

    Raises:
        InvalidArgument: There is no label, or one is not what it should be.
    """
    items = _items(labels)
    images = [item.image for item in items if item.image is not None]
    files = as_files(images)
    if len(files) == len(items):
        return multipart(files, {"labels": json.dumps([_class(item) for item in items])})
    contents = (base64.b64encode(content).decode() for _, content in files)
    entries = [
        {"image": next(contents)} | _class(item) if item.sample is None else {"sample": item.sample} | _class(item)
        for item in items
    ]
    return Payload(JSON, json.dumps({"labels": entries}).encode())


def _items(labels: Labels) -> list[Label]:
    pairs = labels.items() if isinstance(labels, Mapping) else labels
    if isinstance(pairs, (str, bytes)) or not isinstance(pairs, Iterable):
        raise InvalidArgument(f"labels is a {type(labels).__name__}; give a mapping, pairs or `Label`s")
    items = [_item(item, position) for position, item in enumerate(pairs)]
    if not items:
        raise InvalidArgument("labels is empty; give at least one label")
    return items


def _item(item: Label | Pair, position: int) -> Label:
    if isinstance(item, Label):
        return item
    try:
        image, shown = item
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"labels[{position}] is a {type(item).__name__}; give a pair: a sample's id or an image, and its class"
        ) from error
    named = _named(shown, position)
    return Label(sample=image, **named) if isinstance(image, str) else Label(image=image, **named)


def _named(shown: Class, position: int) -> dict[str, Any]:
    if isinstance(shown, str):
        return {"label": shown}
    if not _is_number(shown):
        raise InvalidArgument(f"labels[{position}] has the class {shown!r}; give its name or its number")
    return {"index": shown}


def _is_number(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _class(item: Label) -> dict[str, Any]:
    index = None if item.index is None else int(item.index)  # NumPy's numbers are none of JSON's
    return {name: value for name, value in (("label", item.label), ("class", index)) if value is not None}
