import subprocess
import sys

import pytest

FORBIDDEN = ("torch", "pydantic", "fastapi", "normstream.adaptation", "normstream.service")


@pytest.mark.parametrize(
    "module", ["normstream.clients", "normstream.clients.cli", "normstream.clients.examples.five_pairs"]
)
def test_a_client_loads_nothing_of_the_server(module):
    program = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert module in loaded.split()
    assert not [name for name in loaded.split() if name.startswith(FORBIDDEN)]


def test_the_help_loads_nothing_of_the_server():
    program = (
        "import sys; from normstream.clients.cli import app\n"
        "try: app(['--help'])\n"
        "finally: print('LOADED', *sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    help_text, loaded = output.split("LOADED")
    assert "serve" in help_text
    assert not [name for name in loaded.split() if name.startswith(FORBIDDEN)]
