"""How answers about edges reach the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType

from normstream.clients.cli.output import facts, plain, recipe_name, table, text
from normstream.clients.edge_answers import Edge


def edges_view(edges: Sequence[Edge]) -> RenderableType:
    """Return what people see of many edges."""
    return table([_row(edge) for edge in edges])


def _row(edge: Edge) -> dict[str, str]:
    return {
        "edge": edge.id,
        "model": edge.model,
        "stream": edge.stream,
        "recipe": recipe_name(edge.recipe),
        "behind": text(edge.versions_behind),
        "samples": str(edge.samples.received),
        "last seen": f"{edge.last_seen:%Y-%m-%d %H:%M:%S}" if edge.last_seen else "-",
    }


def edge_view(edge: Edge) -> RenderableType:
    """Return what people see of one edge: its fields, and those of what it holds under names of two words."""
    known = {}
    for name, value in plain(edge).items():
        if name == "recipe":
            known[name] = recipe_name(value)
        elif isinstance(value, dict):
            known |= {f"{name} {part}": _part(item) for part, item in value.items()}
        else:
            known[name] = text(value)
    return facts(known)


def _part(item: object) -> str:
    return ", ".join(f"{count} {name}" for name, count in item.items()) if isinstance(item, dict) else text(item)
