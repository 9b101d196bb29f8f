"""Learning steps: from (state, labelled images) to (state, losses). A state is tensors and nothing else."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from ..hosting import HostedModel
from ..member import Tensors
from ..tensor_slots import in_slot, slot
from .answers import Answers, Replayed
from .classes import Classes
from .growth import HEAD_BIAS, HEAD_WEIGHT, grow, lengthened
from .layer_norms import Lesson
from .learning import Learning
from .network import Features, LearningNetwork
from .pixels import Examples, Pixels, decode, encode, jitter, normalise
from .replay import Drawn, kept_bytes

TRAINED_FOR = 10_000
"""Batches that trained running statistics count as, so that the first one learnt from does not replace them."""


@dataclass(frozen=True, slots=True)
class LearningReport:
    """What a learning step did."""

    loss: float  # the method's
    penalty: float  # the norms' term
    replayed: int  # samples drawn from the memory
    kept: int  # samples in the memory after the step
    kept_bytes: int  # of them, with their logits
    classes: int
    steps: int  # of learning so far
    discarded: str | None = None  # why the state stayed as it was


class LearningStep(NamedTuple):
    """What comes out of a learning step."""

    tensors: Tensors  # the state after it
    logits: Tensor  # of the new samples, before their step and by statistics of the batch, [B, classes]
    report: LearningReport


class Learner:
    """Learns labels for streams of one model and one recipe. Not for several threads at once.

    A stream's state is tensors: `network.` its own parameters and running statistics, `head.`, `optimizer.`,
    `replay.` the memory, `classes.` names and numbers, `steps` taken and `batches` in the running statistics,
    where a lesson of part of a batch counts as that part.

    Raises:
        HostingError: when the model's head cannot grow.
    """

    def __init__(self, hosted: HostedModel, recipe: Learning) -> None:
        self.hosted, self.recipe = hosted, recipe
        self.network = LearningNetwork(hosted, recipe.norm, recipe.learns)
        self.parameter_names = (*(f"network.{name}" for name in self.network.learnt), HEAD_WEIGHT, HEAD_BIAS)
        """Those of the state's tensors that are learnt."""

    def initial(self, names: Sequence[str] = ()) -> Tensors:
        """The state of a stream that has learnt nothing.

        Args:
            names: of the classes that the network's own head tells apart, to go on with it; none has no outputs yet.

        Raises:
            ValueError: when there are not as many names as classes, or two are the same (ImageNet has two cranes).
        """
        head = self.hosted.classifier
        assert head is not None
        if names and len(names) != self.hosted.classes:
            raise ValueError(f"{len(names)} class names are given for the model's {self.hosted.classes} classes")
        if double := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"class names must differ, and there are several {double[0]!r}; tell them apart")
        weight = head.weight.detach()[: len(names)].clone()
        bias = torch.zeros_like(weight[:, 0]) if head.bias is None else head.bias.detach()[: len(names)].clone()
        classes = Classes(tuple(names), len(names))
        parameters = {**in_slot(self.network.parameters(), "network"), HEAD_WEIGHT: weight, HEAD_BIAS: bias}
        # No output is new, so nothing is drawn.
        parameters = grow(parameters, len(names), self._tasks(classes), np.random.default_rng(0))
        memory: Tensors = {}
        for name, value in parameters.items():
            memory |= in_slot(self.recipe.descent.initial(value), f"optimizer.{name}")
        return {
            **parameters,
            **in_slot(self.network.buffers(), "network"),
            **memory,
            **in_slot(self.recipe.replay.initial(), "replay"),
            **in_slot(classes.packed(), "classes"),
            "steps": torch.tensor(0),
            "batches": _batches(TRAINED_FOR if self.network.trained() else 0),
        }

    def predict(self, tensors: Tensors, images: Pixels) -> Tensor:
        """Logits [B, classes] of images [B, H, W, 3]; the order of classes is that of `names`."""
        if not len(tensors[HEAD_BIAS]):
            raise ValueError("no class is known yet: learn from labelled images first")
        with torch.inference_mode():
            features = self.network.predict(slot(tensors, "network"), self._input(images))
            return linear(features, tensors[HEAD_WEIGHT], tensors[HEAD_BIAS])

    def names(self, tensors: Tensors) -> tuple[str, ...]:
        """Of the classes, in the order of the outputs."""
        return Classes.unpacked(slot(tensors, "classes")).names

    def learn(self, tensors: Tensors, examples: Examples, labels: Sequence[str]) -> LearningStep:
        """One step; nothing that is given changes.

        Args:
            tensors: the state.
            examples: new images at the network's input size, [B, H, W, 3], or what the head reads of them, [B, D], in
                a recipe that learns from features.
            labels: name of each one's class; a new name adds an output.

        Raises:
            ValueError: when examples and labels do not fit each other, the network or the recipe.
        """
        recipe = self.recipe
        classes = self._admitted(tensors, examples, labels)
        rng = np.random.default_rng((recipe.seed, int(tensors["steps"])))
        drawn = self._drawn(tensors, classes, rng)
        # Labels move parameters and statistics as far one by one as together; with a whole step for each, the last
        # would rule.
        share = min(1.0, len(examples) / recipe.batch)
        grown = grow(self._parameters(tensors), len(classes.names), self._tasks(classes), rng)
        leaves = {name: value.detach().requires_grad_() for name, value in grown.items()}
        with torch.enable_grad():
            passed = self._pass(tensors | leaves, examples, classes.indices(labels), drawn, classes, share, rng)
            total = passed.loss + passed.penalty
        total.backward()
        moved = {**self._descended(tensors, leaves, share), **in_slot(passed.buffers, "network")}
        broken = [name for name, value in moved.items() if not value.isfinite().all()]
        if broken:
            report = _report(tensors, passed, drawn, f"{broken[0]} would not be finite")
            return LearningStep(tensors, passed.new.logits, report)
        after = {
            **moved,
            **in_slot(self._remembered(tensors, examples, passed, rng), "replay"),
            **in_slot(classes.packed(), "classes"),
            "steps": tensors["steps"] + 1,
            "batches": _batches(float(tensors["batches"]) + share),
        }
        return LearningStep(after, passed.new.logits, _report(after, passed, drawn))

    def _admitted(self, tensors: Tensors, examples: Examples, labels: Sequence[str]) -> Classes:
        """The classes with those of the labels."""
        _, height, width = self.hosted.preprocessing.input_size
        shapes: dict[str, tuple[int, ...]] = {"uint8": (height, width, 3)}
        if self.recipe.learns_from_features:
            shapes["float32"] = (self.network.width,)
        if not len(examples) or shapes.get(examples.dtype.name) != examples.shape[1:]:
            expected = " or ".join(f"{dtype} [B, {', '.join(map(str, shape))}]" for dtype, shape in shapes.items())
            raise ValueError(f"examples are {examples.dtype} {examples.shape}; expected {expected} with B at least 1")
        if len(labels) != len(examples):
            raise ValueError(f"{len(labels)} labels are given for {len(examples)} examples; give one for each")
        classes = Classes.unpacked(slot(tensors, "classes")).grown(labels)
        if (new := len(classes.names) - classes.first) > self.recipe.max_new_classes:
            raise ValueError(
                f"label {classes.names[-1]!r} would be new class {new}, and max_new_classes is"
                f" {self.recipe.max_new_classes}; use known labels or raise max_new_classes"
            )
        return classes

    def _tasks(self, classes: Classes) -> int:
        return classes.count_tasks(self.recipe.classes_per_task)

    def _parameters(self, tensors: Tensors) -> Tensors:
        """Those of the state's tensors that are learnt."""
        return {name: tensors[name] for name in self.parameter_names}

    def _drawn(self, tensors: Tensors, classes: Classes, rng: np.random.Generator) -> list[Drawn]:
        """Samples from the memory, as many draws as the method asks for."""
        memory = _on_cpu(slot(tensors, "replay"))
        draws = (self.recipe.replay.draw(memory, rng) for _ in range(self.recipe.method.replays(self._tasks(classes))))
        return [each for each in draws if each is not None]

    def _pass(
        self,
        tensors: Tensors,
        examples: Examples,
        labels: Tensor,
        drawn: Sequence[Drawn],
        classes: Classes,
        share: float,
        rng: np.random.Generator,
    ) -> "_Passed":
        """Forward, and the loss."""
        network = slot(tensors, "network")
        runs = [labels, *(each.labels for each in drawn)]
        if self.recipe.learns_from_features:
            own = self._read(network, examples, rng)
            features = [own, *(_as_features(each.data).to(own) for each in drawn)]
            body = Features(features[0], {}, own.new_zeros(()))
        else:
            size = examples.shape[1:3]
            inputs = [self._input(each, rng) for each in (examples, *(decode(each.data, size) for each in drawn))]
            tasks = [classes.tasks(run, self.recipe.classes_per_task).to(self.hosted.device) for run in runs]
            lessons = [Lesson(each, self._tasks(classes), float(tensors["batches"]), share) for each in tasks]
            features, body = self._features(network, inputs, lessons)
        new, *old = (linear(each, tensors[HEAD_WEIGHT], tensors[HEAD_BIAS]) for each in features)
        answers = Answers(new, labels.to(new.device))
        replayed = [
            Replayed(logits, *(value.to(logits.device) for value in (each.labels, each.logits, each.outputs)))
            for logits, each in zip(old, drawn, strict=True)
        ]
        loss = self.recipe.method.loss(answers, replayed)
        return _Passed(features[0].detach(), Answers(new.detach(), labels), body.buffers, loss, body.penalty)

    def _features(
        self, network: Tensors, inputs: Sequence[Tensor], lessons: Sequence[Lesson]
    ) -> tuple[list[Tensor], Features]:
        """The body's answers to each of the inputs: as one batch, or one after another."""
        sizes = [len(each) for each in inputs]
        if self.recipe.together:
            one = lessons[0]._replace(tasks=torch.cat([each.tasks for each in lessons]))
            body = self.network.learn(network, torch.cat(list(inputs)), one)
            return list(body.values.split(sizes)), body
        values, penalty = [], inputs[0].new_zeros(())
        for each, lesson in zip(inputs, lessons, strict=True):
            body = self.network.learn(network, each, lesson)
            network = network | body.buffers
            values.append(body.values)
            penalty = penalty + body.penalty
        return values, Features(values[0], body.buffers, penalty)

    def _descended(self, tensors: Tensors, leaves: Tensors, share: float) -> Tensors:
        """The parameters after this share of the optimiser's step, and its memory."""
        moved: Tensors = {}
        for name, leaf in leaves.items():
            value, gradient = leaf.detach(), torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            rows = len(value) if value.dim() else 0
            memory = {key: lengthened(each, rows) for key, each in slot(tensors, f"optimizer.{name}").items()}
            # A convolution's gradient has the layout of its input; a state's tensors are contiguous, as from bytes.
            moved[name], memory = self.recipe.descent.step(value, gradient.contiguous(), memory, share)
            moved |= in_slot(memory, f"optimizer.{name}")
        return moved

    def _remembered(self, tensors: Tensors, examples: Examples, passed: "_Passed", rng: np.random.Generator) -> Tensors:
        """The memory after the new samples were offered, with the answers of this step if the method wants them."""
        replay, (logits, labels) = self.recipe.replay, passed.new
        data: list[bytes] = []
        if replay.keep == "features":
            data = [row.tobytes() for row in passed.features.cpu().numpy()]
        elif replay.keep == "images":
            data = [encode(image, replay.encoding) for image in examples]
        logits = logits if self.recipe.method.keeps_logits else logits[:, :0]
        return replay.take(_on_cpu(slot(tensors, "replay")), data, labels, logits, rng)

    def _read(self, network: Tensors, examples: Examples, rng: np.random.Generator) -> Tensor:
        """What the head reads of examples."""
        if examples.dtype == np.float32:
            return torch.from_numpy(examples.copy()).to(self.hosted.device)
        return self.network.predict(network, self._input(examples, rng))

    def _input(self, images: Examples, rng: np.random.Generator | None = None) -> Tensor:
        """Images as the network takes them; with `rng` moved about if the recipe says so."""
        if rng is not None and self.recipe.augment:
            images = jitter(images, rng)
        return normalise(images, self.hosted.preprocessing).to(self.hosted.device)


class _Passed(NamedTuple):
    """What the forward pass of a learning step gives."""

    features: Tensor  # of the new samples, [B, D]
    new: Answers  # to the new samples
    buffers: Tensors  # running statistics, moved on
    loss: Tensor
    penalty: Tensor


def _report(tensors: Tensors, passed: _Passed, drawn: Sequence[Drawn], discarded: str | None = None) -> LearningReport:
    return LearningReport(
        loss=float(passed.loss.detach()),
        penalty=float(passed.penalty.detach()),
        replayed=sum(len(each.data) for each in drawn),
        kept=len(tensors["replay.lengths"]),
        kept_bytes=kept_bytes(slot(tensors, "replay")),
        classes=len(tensors[HEAD_BIAS]),
        steps=int(tensors["steps"]),
        discarded=discarded,
    )


def _batches(count: float) -> Tensor:
    """Batches in the running statistics, which need not be whole."""
    return torch.tensor(count, dtype=torch.float64)


def _as_features(data: Sequence[bytes]) -> Tensor:
    return torch.from_numpy(np.stack([np.frombuffer(each, np.float32) for each in data]))


def _on_cpu(tensors: Tensors) -> Tensors:
    """The memory of samples lives with whoever reads and writes bytes."""
    return {name: value.cpu() for name, value in tensors.items()}
