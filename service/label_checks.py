"""Whether labels fit their stream: its classes, its predictions, and the labels that it was given before."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from normstream.adaptation import Learning
from normstream.service.errors import Conflict, Fault, Invalid, Problem, invalid
from normstream.service.labels import Label
from normstream.service.storage.records import Labelled, Unlabelled

MOST_COUNTED = 10_000
"""Names for which labels are counted though a stream has no such class."""

Found = Mapping[str, Unlabelled | Labelled]
"""What the store holds of images, by their ids."""


@dataclass(frozen=True, slots=True, eq=False)
class NamedImage:
    """An image and its class."""

    place: str  # in the request
    name: str
    id: str | None  # under which the label counts once; None for an image that comes without a key
    mark: str  # what the store keeps under the id
    image: Tensor | None  # as the model takes it, [C, H, W]; None for one that was predicted before


def class_of(label: Label, names: Sequence[str], learning: Learning | None) -> str:
    """The name of the class that a label means.

    Args:
        label: by name, by number or by both.
        names: of the stream's classes.
        learning: of its recipe, if that may add classes.

    Raises:
        Invalid: when the stream has no such class and can have none, or name and number mean two.
    """
    if label.index is None:
        assert label.name is not None  # noqa: S101  (one of them is there)
        if label.name not in names and learning is None:
            raise invalid(
                f"{label.place}.label",
                f"the stream has no class {label.name!r}, and its recipe learns none; GET its labels to see them all",
            )
        return label.name
    if label.index >= len(names):
        raise invalid(
            f"{label.place}.class", f"there is no class {label.index}; the stream has {len(names)}, numbered from 0"
        )
    name = names[label.index]
    if label.name not in {None, name}:
        raise invalid(label.place, f"class {label.index} is {name!r} and not {label.name!r}; send one of the two")
    return name


def check_room(new: Collection[str], known: int, learning: Learning) -> None:
    """Refuse names for which the head may not grow.

    Args:
        new: names that are no classes of the stream yet, and are to be learnt.
        known: classes that the stream has learnt.
        learning: of its recipe.
    """
    if new and known + len(new) > learning.max_new_classes:
        raise invalid(
            "labels",
            f"with {', '.join(map(repr, sorted(new)[:5]))} the stream would have {known + len(new)} new classes, and"
            f" its recipe's max_new_classes is {learning.max_new_classes}; use known labels",
        )


def teaches(image: NamedImage, found: Found) -> bool:
    """Whether there is something to learn from: the image itself, or what was kept of it when it was predicted."""
    kept = found.get(image.id or "")
    return image.image is not None or (isinstance(kept, Unlabelled) and bool(kept.data))


def check_tally(new: Collection[str], counted: Collection[str]) -> None:
    """Refuse names that would only be counted, where there are too many.

    Args:
        new: that are no classes of the stream.
        counted: such names as the stream's scores have already.
    """
    if (unheard := set(new) - set(counted)) and len(unheard) + len(counted) > MOST_COUNTED:
        raise invalid(
            "labels",
            f"with {', '.join(map(repr, sorted(unheard)[:5]))} the stream's scores would have"
            f" {len(unheard) + len(counted)} names that are none of its classes, and {MOST_COUNTED} is the most;"
            " use known labels, or reset the stream",
        )


def id_of_image(idempotency_key: str, place: str) -> str:
    """An id for an image of the request with this key, unlike that of any prediction."""
    return f"{place}-{hashlib.sha256(idempotency_key.encode()).hexdigest()[:32]}"


def mark_of_image(name: str, file: bytes) -> str:
    """A label that holds for this image alone; a class's name has no line break."""
    return f"{name}\n{hashlib.sha256(file).hexdigest()}"


def without_repeats(images: Sequence[NamedImage]) -> list[NamedImage]:
    """The images of a request, each once.

    Raises:
        Invalid: when it gives a prediction two classes.
    """
    once: dict[object, NamedImage] = {}
    for each in images:
        first = once.setdefault(each.id or each, each)
        if first.mark != each.mark:
            raise invalid(
                each.place, f"{each.id!r} is {first.name!r} in {first.place} and {each.name!r} here; send one label"
            )
    return list(once.values())


def without_labelled(images: Sequence[NamedImage], found: Found, label_ttl_s: float) -> list[NamedImage]:
    """Those that have no label yet.

    Raises:
        Invalid: when the stream has no such predictions.
        Conflict: when one had another label.
    """
    if unknown := [each for each in images if each.image is None and each.id not in found]:
        raise _unknown(unknown, label_ttl_s)
    marks = {each.id: each.label for each in found.values() if isinstance(each, Labelled)}
    for each in images:
        if each.id in marks and marks[each.id] != each.mark:
            raise _contradiction(each, marks[each.id])
    return [each for each in images if each.id not in marks]


def _unknown(images: Sequence[NamedImage], label_ttl_s: float) -> Invalid:
    kept = f"they are kept for {label_ttl_s:g} s" if label_ttl_s else "this server keeps none (label_ttl_s is 0)"
    faults = [
        Fault(where=f"{each.place}.sample", problem=f"no prediction {each.id!r} of this stream waits for a label")
        for each in images[:20]
    ]
    told = "; ".join(f"{fault.where}: {fault.problem}" for fault in faults)
    return Invalid(f"{told}; {kept}. Send the images with their labels.", faults)


def _contradiction(image: NamedImage, mark: str) -> Problem:
    name, _, digest = mark.partition("\n")
    if digest != image.mark.partition("\n")[2]:
        return invalid(
            image.place, "the Idempotency-Key was used with another image here; make up a new key for each request"
        )
    return Conflict(
        f"{image.place}: the image was labelled {name!r} before, and now {image.name!r}. A label that was given"
        " stays; leave this one out."
    )
