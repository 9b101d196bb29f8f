"""The commands about snapshots: `normstream snapshot ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from normstream.clients.cli.options import AsJson, SnapshotId, Url
from normstream.clients.cli.output import show
from normstream.clients.client import Client

app = typer.Typer(no_args_is_help=True, help="Carry snapshots of streams to and fro.")

Target = Annotated[Path | None, typer.Argument(dir_okay=False, help="Where to; SID.safetensors here if left out.")]
Source = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A downloaded snapshot.")]
UploadId = Annotated[str | None, typer.Option("--id", help="Its id; the file's name if left out.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if there is one.")]


@app.command()
def download(
    snapshot: SnapshotId, file: Target = None, force: Force = False, url: Url = None, as_json: AsJson = False
) -> None:
    """Save a snapshot as a file."""
    path = file or Path(f"{snapshot}.safetensors")
    if path.exists() and not force:
        raise typer.BadParameter(f"{path} exists; name another file, or use --force", param_hint="FILE")
    with Client(url) as client:
        size = path.write_bytes(client.download_snapshot(snapshot))
    show({"snapshot": snapshot, "file": str(path), "bytes": size}, as_json)


@app.command()
def upload(file: Source, snapshot: UploadId = None, url: Url = None, as_json: AsJson = False) -> None:
    """Upload a snapshot from a file."""
    with Client(url) as client:
        show(client.upload_snapshot(snapshot or file.stem, file.read_bytes()), as_json)


@app.command()
def delete(snapshot: SnapshotId, url: Url = None, as_json: AsJson = False) -> None:
    """Delete a snapshot."""
    with Client(url) as client:
        client.delete_snapshot(snapshot)
    show({"deleted": snapshot}, as_json)
