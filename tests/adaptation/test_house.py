"""Promises about the library as a whole."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import normstream.adaptation

MODULES = [info.name for info in pkgutil.walk_packages(normstream.adaptation.__path__, "normstream.adaptation.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_library_knows_no_http_redis_or_server():
    code = "import sys, normstream.adaptation; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "torch" in loaded
    assert not loaded & {"fastapi", "starlette", "redis", "uvicorn", "normstream.service", "normstream.clients"}
