"""Commands that are imported when they are used, from packages made here."""

import sys
from importlib.metadata import EntryPoint, version

import pytest
import typer
from typer.testing import CliRunner

from normstream.clients.cli import app, lazy
from normstream.clients.cli.lazy import LazyCommand

GOOD = """
import typer
from typing import Annotated

def serve(port: Annotated[int, typer.Option(help="Where to listen.")] = 8000) -> None:
    typer.echo(f"serving on {port}")

group = typer.Typer()

@group.command()
def one() -> None:
    typer.echo("one")

@group.command()
def two() -> None:
    typer.echo("two")
"""


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """Run the command line with `serve` and `extra` added by modules made here."""
    (tmp_path / "added_good.py").write_text(GOOD)
    (tmp_path / "added_bad.py").write_text("import a_library_that_is_missing\n")
    (tmp_path / "added_broken.py").write_text("import normstream.a_module_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    targets = {
        "serve": "added_good:serve",
        "serve one": "added_good:one",
        "group": "added_good:group",
        "bad": "added_bad:bad",
        "broken": "added_broken:broken",
    }
    points = [EntryPoint(name, value, lazy.GROUP) for name, value in targets.items()]
    monkeypatch.setattr(lazy, "entry_points", lambda group: points if group == lazy.GROUP else [])
    yield lambda *arguments: CliRunner().invoke(app, arguments)
    for name in ("added_good", "added_bad", "added_broken"):
        sys.modules.pop(name, None)


def test_the_help_names_them_and_imports_none(invoke):
    result = invoke("--help")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in ("demo", "serve", "bad", "Serve models", "Added by added_bad"))
    assert "added_good" not in sys.modules


def test_a_command_has_its_own_options(invoke):
    assert "Where to listen" in invoke("serve", "--help").stdout
    assert invoke("serve", "--port", "9").stdout == "serving on 9\n"
    assert invoke("serve", "--what").exit_code == 2


def test_a_name_of_two_words(invoke):
    assert invoke("serve", "one").stdout == "one\n"
    assert invoke("serve").stdout == "serving on 8000\n"
    assert "serve one" in invoke("--help").stdout


def test_a_group_of_commands(invoke):
    assert invoke("group", "two").stdout == "two\n"


@pytest.mark.parametrize("arguments", [(), ("--port", "9", "file")])
def test_a_missing_library_is_named_with_the_remedy(invoke, arguments):
    result = invoke("bad", *arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == (
        "normstream: `normstream bad` needs a_library_that_is_missing, which is not installed: "
        'pip install "normstream[server]"\n'
    )


def test_the_help_of_a_command_without_its_library(invoke):
    result = invoke("bad", "--help")
    assert result.exit_code == 0
    assert "Added by added_bad" in result.stdout


def test_a_fault_of_our_own_is_not_hidden(invoke):
    assert isinstance(invoke("broken").exception, ModuleNotFoundError)


def test_the_demo_asks_for_its_own_extra():
    demo = LazyCommand(lazy.DEMO, extra="bench")
    demo.missing = "matplotlib"
    with pytest.raises(lazy.MissingExtraError, match=r'needs matplotlib, .*pip install "normstream\[bench\]"'):
        demo.explain()


def test_the_installed_commands_are_found():
    names = typer.main.get_group(app).list_commands(None)
    assert names == [
        "models",
        "recipes",
        "methods",
        "stream",
        "snapshot",
        "edge",
        "demo",
        "bench",
        "bench continual",
        "bench edge",
        "calibrate",
        "doctor",
        "serve",
    ]


def test_version():
    assert CliRunner().invoke(app, ["--version"]).stdout == f"{version('normstream')}\n"


def test_completion_stays_on():
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).stdout
