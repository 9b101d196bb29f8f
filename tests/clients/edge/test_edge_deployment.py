"""What can be checked of the edge's Dockerfile, unit and page with neither Docker nor systemd."""

import inspect
import re
import shlex
from configparser import ConfigParser
from pathlib import Path

import pytest
import typer

from normstream.clients.edge.cli import app
from normstream.clients.edge.metrics import exposition
from normstream.clients.edge.selection import Criteria

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILE = (ROOT / "docker/edge.Dockerfile").read_text()
PAGE = (ROOT / "docs/edge.md").read_text()


@pytest.fixture(scope="module")
def options() -> dict[str, object]:
    """The long options of `run` and their defaults."""
    run = typer.main.get_command(app).commands["run"]
    return {name: each.default for each in run.params for name in each.opts if name.startswith("--")}


def test_every_option_is_documented_with_its_default(options):
    table = PAGE.partition("## Options of `run`")[2]
    documented = {}
    for names, defaults in re.findall(r"^\| (`--.+?) \| (.*?) \|", table, re.M):
        found = re.findall(r"`(--[\w-]+)`", names)
        documented |= dict.fromkeys(found) if len(found) > 1 else {found[0]: defaults.strip("`")}
    assert sorted(documented) == sorted(set(options) - {"--help"})
    for name, default in options.items():
        if isinstance(default, int | float | str) and not isinstance(default, bool) and documented.get(name):
            assert documented[name] == (f"{default:g}" if isinstance(default, float) else str(default)), name


def test_the_bounds_of_the_command_are_those_of_the_selection(options):
    for name in ("unreliable", "uninformative", "redundant"):
        assert options[f"--{name}"] == inspect.signature(Criteria).parameters[name].default


def test_every_metric_that_is_documented_exists():
    documented = re.findall(r"`(\w+_total|spool_samples|step_seconds|version_age_seconds|healthy|info)`", PAGE)
    source = inspect.getsource(inspect.getmodule(exposition))
    assert documented
    assert all(f'"{name}"' in source or f"_{name}{{" in source for name in documented)


def test_the_unit_starts_the_command_with_options_that_exist(options):
    unit = ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(ROOT / "docs/normstream-edge.service")
    command = shlex.split(unit["Service"]["ExecStart"].replace("\\\n", " "))
    assert Path(command[0]).name == "normstream-edge"
    assert command[1] == "run"
    assert {word for word in command if word.startswith("--")} <= set(options)
    assert command[command.index("--folder") + 1] == f"/var/lib/{unit['Service']['StateDirectory']}"


def test_the_image_has_no_privileges_and_no_torch():
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.M) == ["10001"]
    assert "server" not in re.findall(r"^ARG EXTRAS=(.+)$", DOCKERFILE, re.M)[0]
    assert re.findall(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.M) == ['["normstream-edge"]']
    assert set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.M)) == {
        "PYTHON",
        "EXTRAS",
        "PIP_INDEX_URL",
        "PIP_EXTRA_INDEX_URL",
    }


def test_what_the_image_is_built_of_is_there():
    for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.M):
        assert all((ROOT / source).exists() for source in line.split())
