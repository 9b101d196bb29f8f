"""Labelling: labels are counted, and learnt from in lessons, each of which is put into the store whole.

All of a request is checked before any of it counts. Between lessons the stream's turn is given back, and however many
requests bring labels, one lesson of this server at a time has a turn or waits for it: predictions of all streams wait
for one at most. A lesson marks its images as labelled with the very commit that holds what was learnt: whenever a
server dies, the same request goes on where it stopped.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from normstream.service.deadline import Deadline
from normstream.service.engine import Engine
from normstream.service.images import Images
from normstream.service.label_checks import NamedImage, class_of, id_of_image, mark_of_image, without_repeats
from normstream.service.label_schemas import Labelling, LearntNow, StreamLabels, StreamLearning, StreamScores
from normstream.service.labels import Label
from normstream.service.lessons import LabelledStream, Lesson, Lessons
from normstream.service.predicting import Predictor
from normstream.service.scores import Scores
from normstream.service.settings import Settings
from normstream.service.streams import Streams


class Labeller:
    """Takes labels in. Every method may raise a `Problem` or a `StoreError`; what whole lessons did before it stays."""

    def __init__(self, streams: Streams, predictor: Predictor, settings: Settings) -> None:
        self._streams = streams
        self._predictor = predictor
        self._lessons = Lessons(streams, settings)

    async def show(self, stream_id: str) -> StreamLabels:
        """How a stream has done by the labels that came, and what it has learnt."""
        stream = await self._lessons.loaded(stream_id)
        return StreamLabels.of(stream.record, stream.names, stream.state.learnt)

    async def label(
        self, stream_id: str, labels: Sequence[Label], *, learns: bool, key: str | None, deadline: Deadline
    ) -> Labelling:
        """Count labels, and learn from them if the stream's recipe does so.

        Args:
            stream_id: whose images they name.
            labels: with images still undecoded.
            learns: false counts them and no more.
            key: an idempotency key; images that come again under it count once.
            deadline: until when the images must be decoded; each lesson has a time of its own.
        """
        stream = await self._lessons.loaded(stream_id)
        async with deadline.kept():
            images = await self._decoded(stream.engine, labels)
        async with self._streams.turn(stream_id):
            stream = await self._lessons.loaded(stream_id, stream.record.generation)
            given = without_repeats([_named(each, images, stream, key) for each in labels])
            left, _ = await self._lessons.unlabelled(stream, given, learns)
        learning = stream.state.recipe.learn if learns else None
        size = learning.batch if learning else len(labels)
        lessons = [Lesson(stream.record, stream.state.learnt, duplicates=len(labels) - len(left))]
        lessons += [
            await self._lessons.give(stream.record, left[start : start + size], learns=learning is not None)
            for start in range(0, len(left), size)
        ]
        return _told(lessons)

    async def _decoded(self, engine: Engine, labels: Sequence[Label]) -> Mapping[str, Tensor]:
        """The images that came along as the model takes them, by the places of their labels."""
        files = {each.place: (each.file, each.file_place) for each in labels if each.file is not None}
        if not files:
            return {}
        contents, places = zip(*files.values(), strict=True)
        return dict(zip(files, await self._predictor.prepared(Images(contents, places=places), engine), strict=True))


def _named(label: Label, images: Mapping[str, Tensor], stream: LabelledStream, key: str | None) -> NamedImage:
    """A label with the class that it means, and the id under which it counts once."""
    name = class_of(label, stream.names, stream.state.recipe.learn)
    if label.file is None:
        return NamedImage(label.place, name, label.sample, mark=name, image=None)
    image_id = None if key is None else id_of_image(key, label.place)
    return NamedImage(label.place, name, image_id, mark_of_image(name, label.file), images[label.place])


def _told(lessons: Sequence[Lesson]) -> Labelling:
    """The answer to a request, from what became of its labels."""
    record, learnt = lessons[-1].record, lessons[-1].learnt
    learning = None
    if learnt is not None:
        learning = LearntNow(
            **StreamLearning.of(learnt).model_dump(),
            steps=[each.step for each in lessons if each.step is not None],
            new_classes=[name for each in lessons for name in each.new_classes],
        )
    return Labelling(
        stream=record.id,
        model=record.model,
        step=record.step,
        version=record.version,
        labelled=sum(each.labelled for each in lessons),
        duplicates=sum(each.duplicates for each in lessons),
        unlearnt=sum(each.unlearnt for each in lessons),
        scores=StreamScores.of(Scores.unpack(record.scores)),
        learning=learning,
    )
