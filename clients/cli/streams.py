"""The commands about streams: `normstream stream ...`."""

from __future__ import annotations

from typing import Annotated

import typer

from normstream.clients.cli.labels import label, scores
from normstream.clients.cli.options import AsJson, RecipeText, SnapshotId, StreamId, Url, recipe_of
from normstream.clients.cli.output import show
from normstream.clients.cli.predict import predict
from normstream.clients.client import Client

app = typer.Typer(no_args_is_help=True, help="Create streams, predict with them, look after their state.")

NewId = Annotated[str | None, typer.Argument(metavar="ID", help="Its id; made up if left out.")]
ModelOption = Annotated[str | None, typer.Option(help="A hosted model; the server's default if left out.")]
IdleOption = Annotated[
    float | None, typer.Option(min=0, help="Drop the stream after so many seconds without a request.")
]
LastEventId = Annotated[str | None, typer.Option(metavar="ID", help="Go on after this event.")]


@app.command()
def create(
    stream: NewId = None,
    *,
    model: ModelOption = None,
    recipe: RecipeText = "alpha_bn",
    idle_ttl_s: IdleOption = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Create a stream."""
    parsed = recipe_of(recipe)
    with Client(url) as client:
        show(client.create_stream(stream, model=model, recipe=parsed, idle_ttl_s=idle_ttl_s), as_json)


@app.command("list")
def list_all(url: Url = None, as_json: AsJson = False) -> None:
    """List all streams."""
    with Client(url) as client:
        show(list(client.streams()), as_json)


@app.command("show")
def show_one(stream: StreamId, url: Url = None, as_json: AsJson = False) -> None:
    """Show one stream."""
    with Client(url) as client:
        show(client.stream(stream), as_json)


app.command()(predict)
app.command()(label)
app.command()(scores)


@app.command()
def reset(stream: StreamId, url: Url = None, as_json: AsJson = False) -> None:
    """Put a stream back to the source state."""
    with Client(url) as client:
        show(client.reset(stream), as_json)


@app.command()
def snapshot(stream: StreamId, url: Url = None, as_json: AsJson = False) -> None:
    """Keep a copy of a stream's state."""
    with Client(url) as client:
        show(client.snapshot(stream), as_json)


@app.command()
def snapshots(stream: StreamId, url: Url = None, as_json: AsJson = False) -> None:
    """List a stream's snapshots, newest first."""
    with Client(url) as client:
        show(list(client.snapshots(stream)), as_json)


@app.command()
def restore(stream: StreamId, snapshot: SnapshotId, url: Url = None, as_json: AsJson = False) -> None:
    """Put a stream's state back to a snapshot."""
    with Client(url) as client:
        show(client.restore(stream, snapshot), as_json)


@app.command()
def fork(stream: StreamId, new: NewId = None, url: Url = None, as_json: AsJson = False) -> None:
    """Copy a stream's state to a new stream."""
    with Client(url) as client:
        show(client.fork(stream, new), as_json)


@app.command()
def delete(stream: StreamId, url: Url = None, as_json: AsJson = False) -> None:
    """Delete a stream."""
    with Client(url) as client:
        client.delete_stream(stream)
    show({"deleted": stream}, as_json)


@app.command()
def events(stream: StreamId, last_event_id: LastEventId = None, url: Url = None, as_json: AsJson = False) -> None:
    """Follow a stream's events until it is deleted; with --json, one a line."""
    with Client(url) as client:
        for event in client.events(stream, last_event_id):
            show(event, as_json)
