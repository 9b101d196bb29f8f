"""The tables in the pages about members, made from the code: `make docs` writes them, a test compares."""

import re
from itertools import groupby
from pathlib import Path

from normstream.adaptation import Method, catalogue
from normstream.adaptation.catalogue import Parameter

FOLDER = Path(__file__).parent
INDEX = FOLDER / "README.md"
SLOTS = {
    "norm": "`norm`: the statistics at every normalisation layer",
    "update": "`update`: affine parameters, moved by a loss",
    "output": "`output`: predictions, adjusted after the network",
    "learn.method": "`learn.method`: the loss of a lesson, over new and replayed samples",
    "learn.norm": "`learn.norm`: what takes the place of batch norms while a stream learns",
}


def pages() -> dict[Path, str]:
    """Each page that there is, as it must be."""
    methods = catalogue()
    texts = {FOLDER / f"{method.name}.md": ("parameters", parameter_table(method)) for method in methods}
    texts[INDEX] = ("members", index(methods))
    return {path: _between(path.read_text(), *table) for path, table in texts.items() if path.exists()}


def parameter_table(method: Method) -> str:
    """What a member takes."""
    if not method.parameters:
        return "It has no parameters.\n"
    rows = [(f"`{each.name}`", _default(each), _allowed(each), each.description) for each in method.parameters]
    return _table(("parameter", "default", "allowed", "what it is"), rows)


def index(methods: list[Method]) -> str:
    """All members, slot by slot."""
    parts = []
    for slot, members in groupby(methods, lambda method: method.slot):
        rows = [(f"[`{each.name}`]({each.name}.md)", each.summary, _needs(each), each.cost) for each in members]
        parts.append(f"## {SLOTS[slot]}\n\n{_table(('member', 'what it does', 'needs', 'cost'), rows)}")
    return "\n" + "\n".join(parts) + "\n"


def _needs(method: Method) -> str:
    asked = {"a linear classifier": method.classifier, "calibration": method.calibration}
    return ", ".join(filter(None, [method.layers, *(name for name, wanted in asked.items() if wanted)])) or "nothing"


def _default(parameter: Parameter) -> str:
    value = parameter.default
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else f"`{value}`" if isinstance(value, str) else str(value)


def _allowed(parameter: Parameter) -> str:
    if parameter.choices:
        return ", ".join(f"`{choice}`" for choice in parameter.choices)
    if parameter.type == "boolean":
        return "true, false"
    whole = "whole, " if parameter.type == "integer" else ""
    return whole + (parameter.range or "any")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [" | ".join(cell.replace("|", r"\|") for cell in row) for row in rows]
    return f"| {' | '.join(head)} |\n{'|---' * len(head)}|\n" + "".join(f"| {line} |\n" for line in lines)


def _between(page: str, name: str, table: str) -> str:
    """The page with the table between two comments; of a new page's one comment two are made."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    place = re.compile(f"{re.escape(begin)}(?:.*{re.escape(end)})?", re.DOTALL)
    return place.sub(lambda _: f"{begin}\n{table}{end}", page, count=1)


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
