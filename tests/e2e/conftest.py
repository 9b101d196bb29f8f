"""The real process, `normstream serve`, for tests from end to end."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import Process, data_folder, tiny_checkpoint


@pytest.fixture(scope="session")
def tiny_option(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `--model` takes for a small model that steps in milliseconds."""
    checkpoint = tiny_checkpoint(tmp_path_factory.mktemp("weights"))
    return f"name=tiny,architecture=test_efficientnet,checkpoint={checkpoint},classes=7"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short, as a unix socket's must be."""
    with tempfile.TemporaryDirectory(prefix="ns-") as path:
        yield Path(path)


@pytest.fixture
def start(folder: Path, tiny_option: str) -> Iterator[Callable[..., Process]]:
    """Starts servers of the tiny model; those that still run when the test ends are killed."""
    processes: list[Process] = []

    def started(*options: str, **settings: object) -> Process:
        log = folder / f"server-{len(processes)}.log"
        processes.append(Process(log, "--model", tiny_option, *options, **settings))
        return processes[-1]

    yield started
    for process in processes:
        process.kill()


@pytest.fixture(scope="session")
def real(packages: Path) -> Iterator[Process]:
    """A server as people start it: the default model and the embedded Redis."""
    with tempfile.TemporaryDirectory(prefix="ns-") as path:
        process = Process(Path(path) / "server.log", data=data_folder(Path(path, "data"), packages))
        try:
            yield process.ready()
            assert process.stop() == 0
        finally:
            process.kill()
