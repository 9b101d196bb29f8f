"""The command line: `normstream`."""

from normstream.clients.cli.root import app, main

__all__ = ["app", "main"]
