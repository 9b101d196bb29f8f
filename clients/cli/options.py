"""The options and arguments that several commands share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from normstream.clients.client import DEFAULT_URL

Url: TypeAlias = Annotated[
    str | None,
    typer.Option("--url", envvar="NORMSTREAM_URL", show_default=DEFAULT_URL, help="The server."),
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]
StreamId: TypeAlias = Annotated[str, typer.Argument(metavar="ID", help="The stream's id.")]
SnapshotId: TypeAlias = Annotated[str, typer.Argument(metavar="SID", help="The snapshot's id.")]
