"""The commands about edges, for those who operate them: `normstream edge ...`."""

from __future__ import annotations

from typing import Annotated

import typer

from normstream.clients.cli.edge_output import edge_view, edges_view
from normstream.clients.cli.options import AsJson, Url
from normstream.clients.cli.output import show
from normstream.clients.client import Client

app = typer.Typer(no_args_is_help=True, help="Look after edges: devices that run a model by themselves.")

EdgeId = Annotated[str, typer.Argument(metavar="ID", help="The edge's id.")]


@app.command("list")
def list_all(url: Url = None, as_json: AsJson = False) -> None:
    """List all edges."""
    with Client(url) as client:
        show(list(client.edges()), as_json, edges_view)


@app.command("show")
def show_one(edge: EdgeId, url: Url = None, as_json: AsJson = False) -> None:
    """Show one edge."""
    with Client(url) as client:
        show(client.edge(edge), as_json, edge_view)


@app.command()
def delete(edge: EdgeId, url: Url = None, as_json: AsJson = False) -> None:
    """Forget an edge; with the last of its stream the stream goes too."""
    with Client(url) as client:
        client.delete_edge(edge)
    show({"deleted": edge}, as_json)
