"""Continual learning on Split CIFAR-10: five pairs of classes, one after the other, each image labelled.

CIFAR-10 ──split──> tasks ──Learner──> state after each task ──test images of all tasks──> accuracies
                              └── kept on disk, so that a run that was cut short goes on
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from normstream.adaptation import HostedModel, ModelSpec, load_model
from normstream.adaptation.bench import continual_report
from normstream.adaptation.bench.datasets import CifarFile, Dataset
from normstream.adaptation.bench.errors import BenchError
from normstream.adaptation.bench.orders import Indices
from normstream.adaptation.bench.results import Results, write
from normstream.adaptation.continual import Learner, Learning
from normstream.adaptation.member import Tensors

Network: TypeAlias = Literal["resnet10", "resnet18"]

CLASSES_PER_TASK = 2
EVALUATED = 250  # images at a time
# Of AdaB²N, chosen on training images that were held out (docs/bench.md).
ADAB2N = {"kappa": 0.1, "loss_weight": 0.1}
# Weights of the stored logits and of the replayed labels, by the buffer's size, as published for Split CIFAR-10.
DERPP = {500: {"alpha": 0.2, "beta": 0.5}, 2000: {"alpha": 0.1, "beta": 1.0}}


@dataclass(frozen=True, slots=True)
class Entrant:
    """A method and the norm in its network."""

    method: Literal["er_ace", "derpp"]
    norm: Literal["bn", "gn", "cn", "adab2n"]
    together: bool = True  # new and replayed images in one forward pass

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.method} {self.norm}{'' if self.together else ' apart'}"

    def recipe(self, buffer: int, batch: int, lr: float, seed: int) -> Learning:
        """With the published choices for Split CIFAR-10."""
        method = DERPP.get(buffer, DERPP[500]) if self.method == "derpp" else {}
        norm = ADAB2N if self.norm == "adab2n" else {}
        return Learning.model_validate(
            {
                "head": "new",
                "method": {"name": self.method, **method},
                "norm": {"name": self.norm, **norm},
                "learns": "all",
                "batch": batch,
                "descent": {"lr": lr},
                "replay": {"keep": "images", "encoding": "png", "capacity": buffer, "batch": batch},
                "together": self.together,
                "augment": True,
                "classes_per_task": CLASSES_PER_TASK,
                "seed": seed,
            }
        )


# The published baseline passes new and replayed images through the network apart, AdaB²N together; so that the gain of
# the one is not taken for that of the other, batch normalisation comes in both.
NORMS = (("bn", False), ("bn", True), ("gn", True), ("cn", True), ("adab2n", True))
ENTRANTS = tuple(
    Entrant(method, norm, together)  # type: ignore[arg-type] # mypy takes the literals for any text
    for method in ("er_ace", "derpp")
    for norm, together in NORMS
)


@dataclass(frozen=True, slots=True)
class Setting:
    """What all entrants have in common."""

    network: Network = "resnet10"
    epochs: int = 1  # 1 is the online setting: every image is new once
    batch: int = 10  # new images of a step, and replayed ones of a draw
    lr: float = 0.03
    images: int | None = None  # of training, evenly spaced; all
    test_images: int | None = None
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Run:
    """One entrant with one buffer and one seed, as far as it has come."""

    entrant: Entrant
    buffer: int
    seed: int
    accuracies: list[list[float]] = field(
        default_factory=list
    )  # after each task, on each task learnt so far; in [0, 1]
    seconds: float = 0.0  # of learning
    discarded: int = 0  # steps

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.entrant.name.replace(' ', '-')}-{self.buffer}-seed{self.seed}"


def measure(
    data: Path,
    out: Path,
    setting: Setting,
    *,
    entrants: Sequence[Entrant] = ENTRANTS,
    buffers: Sequence[int] = (500, 2000),
    seeds: Sequence[int] = (0, 1, 2),
    advance: Callable[[Run], None] = lambda _: None,
) -> list[Run]:
    """Measure what is not yet measured; write results.json, results.md and results.png.

    Args:
        data: folder of CIFAR-10's train.npz and test.npz.
        out: folder of results; a run that was cut short goes on there after its last whole task.
        setting: of all runs.
        entrants: methods and norms.
        buffers: sizes of the memory, in images.
        seeds: of weights, orders, crops and memories.
        advance: is told of each run after each task.

    Raises:
        BenchError: when data or folder are not what they should be.
    """
    train, test = (_load(data / f"{part}.npz", setting, count) for part, count in _parts(setting))
    kept = Results(out, _settings(setting, train, test))
    kept.open()
    runs = []
    # Seed by seed, so that what is there early compares all entrants.
    for seed, buffer, entrant in product(seeds, buffers, entrants):
        run = Run(entrant, buffer, seed)
        for further in follow(run, setting, split(train), split(test), out):
            advance(further)
            run = further
        runs.append(run)
    write(out / "results.json", {"settings": kept.settings, "runs": [_plain(run) for run in runs]})
    curves = continual_report.gather((run.entrant.name, run.buffer, run.accuracies) for run in runs)
    (out / "results.md").write_text(continual_report.markdown(kept.settings, curves))
    continual_report.draw(curves, out / "results.png")
    return runs


def split(dataset: Dataset) -> list[Dataset]:
    """The tasks: classes 0 and 1, 2 and 3, and so on."""
    tasks = dataset.labels // CLASSES_PER_TASK
    chosen = [np.flatnonzero(tasks == task) for task in np.unique(tasks)]
    return [Dataset(dataset.pixels[rows], dataset.labels[rows], dataset.numbers[rows]) for rows in chosen]


def follow(
    run: Run, setting: Setting, train: Sequence[Dataset], test: Sequence[Dataset], folder: Path
) -> Iterator[Run]:
    """Learn task after task; the run after each of them, from where it was cut short if it was."""
    learner = Learner(host(setting, run.seed), run.entrant.recipe(run.buffer, setting.batch, setting.lr, run.seed))
    path = folder / f"{run.name}.json"
    state = learner.initial()
    if path.is_file():
        run, state = _resumed(run, path, setting, len(train))
        yield run
    for number in range(len(run.accuracies), len(train)):
        begin = time.perf_counter()
        state, discarded = learn(learner, state, train[number], setting, (run.seed, number))
        seconds = time.perf_counter() - begin
        accuracies = [accuracy(learner, state, task) for task in test[: number + 1]]
        run = replace(
            run,
            accuracies=[*run.accuracies, accuracies],
            seconds=run.seconds + seconds,
            discarded=run.discarded + discarded,
        )
        _keep(run, state, path, last=number + 1 == len(train))
        yield run


def learn(
    learner: Learner, state: Tensors, task: Dataset, setting: Setting, seed: tuple[int, int]
) -> tuple[Tensors, int]:
    """The state after a task, and how many steps were discarded."""
    discarded = 0
    for epoch in range(setting.epochs):
        order = np.random.default_rng((*seed, epoch)).permutation(len(task.labels))
        for start in range(0, len(order), setting.batch):
            rows = order[start : start + setting.batch]
            step = learner.learn(state, task.pixels[rows], _names(task.labels[rows]))
            state, discarded = step.tensors, discarded + (step.report.discarded is not None)
    return state, discarded


def accuracy(learner: Learner, state: Tensors, task: Dataset) -> float:
    """Share of a task's images whose class is told right among all classes learnt so far."""
    names = np.array(learner.names(state))
    hits = 0
    for start in range(0, len(task.labels), EVALUATED):
        rows = slice(start, start + EVALUATED)
        answers = learner.predict(state, task.pixels[rows]).argmax(1).cpu().numpy()
        hits += int((names[answers] == _names(task.labels[rows])).sum())
    return hits / len(task.labels)


def host(setting: Setting, seed: int) -> HostedModel:
    """The network, untrained, with weights of the seed."""
    return load_model(ModelSpec(architecture=f"cifar_{setting.network}", seed=seed, classes=10), setting.device)


def _names(labels: Indices) -> list[str]:
    return [str(label) for label in labels]


def _parts(setting: Setting) -> list[tuple[str, int | None]]:
    return [("train", setting.images), ("test", setting.test_images)]


def _load(path: Path, setting: Setting, count: int | None) -> Dataset:
    if not path.is_file():
        raise BenchError(f"--data: there is no {str(path)!r}; expected a folder of CIFAR-10's train.npz and test.npz")
    dataset = CifarFile(path).load(host(setting, 0), count)
    if len(np.unique(dataset.labels)) < 2 * CLASSES_PER_TASK:
        raise BenchError(f"--data: {str(path)!r} has {len(np.unique(dataset.labels))} classes, too few for two tasks")
    return dataset


def _settings(setting: Setting, train: Dataset, test: Dataset) -> dict[str, Any]:
    """All that a figure depends on beside entrant, buffer, seed, and what `Entrant.recipe` makes of these."""
    data = {"train": f"sha256:{train.digest}", "test": f"sha256:{test.digest}"}
    counts = {"images": len(train.labels), "test_images": len(test.labels)}
    return asdict(setting) | counts | data | {"normstream": version("normstream"), "torch": version("torch")}


def _plain(run: Run) -> dict[str, Any]:
    scores = {
        "average_accuracy": continual_report.average_accuracy(run.accuracies),
        "forgetting": continual_report.forgetting(run.accuracies),
    }
    return asdict(run) | {name: round(value, 4) for name, value in scores.items()}


def _keep(run: Run, state: Tensors, path: Path, *, last: bool) -> None:
    """The state first: it is named by its task, so the record of a task never meets the state of another."""
    tasks = len(run.accuracies)
    if not last:
        save_file({name: value.cpu() for name, value in state.items()}, _state_path(path, tasks))
    write(path, _plain(run))
    _state_path(path, tasks - 1).unlink(missing_ok=True)


def _resumed(run: Run, path: Path, setting: Setting, tasks: int) -> tuple[Run, Tensors]:
    """The run and its state after its last whole task; a finished run needs no state."""
    try:
        record = json.loads(path.read_text())
        kept = replace(run, **{name: record[name] for name in ("accuracies", "seconds", "discarded")})
        done = len(kept.accuracies) == tasks
        return kept, {} if done else load_file(_state_path(path, len(kept.accuracies)), device=setting.device)
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise BenchError(f"--out: cannot read {str(path)!r} ({error!r}); delete it, or give another folder") from None


def _state_path(path: Path, tasks: int) -> Path:
    return path.with_name(f"{path.stem}-task{tasks}.safetensors")
