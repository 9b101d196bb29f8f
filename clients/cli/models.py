"""The commands about what a server hosts: `models` and `recipes`."""

from __future__ import annotations

from normstream.clients.cli.options import AsJson, Url
from normstream.clients.cli.output import show
from normstream.clients.client import Client


def models(url: Url = None, as_json: AsJson = False) -> None:
    """List the hosted models."""
    with Client(url) as client:
        show(client.models(), as_json)


def recipes(url: Url = None, as_json: AsJson = False) -> None:
    """List the named recipes."""
    with Client(url) as client:
        show(client.recipes(), as_json)
