"""The calls and commands of those who operate edges, against the real server."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import Process, data_folder
from typer.testing import CliRunner

from normstream.clients import AsyncClient, Client, NotFound
from normstream.clients.cli import app


def run(server: Process, *words: str) -> str:
    result = CliRunner().invoke(app, ["edge", *words, "--url", server.url])
    assert result.exit_code == 0, result.output
    return result.stdout


async def test_edges_are_listed_shown_and_forgotten(
    start: Callable[..., Process], folder: Path, packages: Path
) -> None:
    server = start(data=data_folder(folder / "data", packages)).ready()
    with server.api(timeout=60) as api:
        for edge, group in (("gate-1", None), ("gate-2", "north")):
            answer = api.post("/v1/edges", json={"id": edge, "group": group, "recipe": "alpha_bn"})
            assert answer.status_code == 201, answer.text
    with Client(server.url) as client:
        first, second = client.edges()
        assert (first.id, first.stream, first.group) == ("gate-1", "edge-gate-1", None)
        assert client.edge("gate-2") == second
        assert (second.stream, second.report, second.last_seen) == ("group-north", None, None)
        assert second.samples.received == 0
        async with AsyncClient(server.url) as other:
            assert [each async for each in other.edges()] == [first, second]
            assert await other.edge("gate-1") == first
            await other.delete_edge("gate-1")
        with pytest.raises(NotFound):
            client.edge("gate-1")

        (listed,) = json.loads(run(server, "list", "--json"))
        assert json.loads(run(server, "show", "gate-2", "--json")) == listed
        assert "group-north" in run(server, "list")
        assert "samples pending" in run(server, "show", "gate-2")
        assert json.loads(run(server, "delete", "gate-2", "--json")) == {"deleted": "gate-2"}
        assert list(client.edges()) == []
