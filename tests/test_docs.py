"""The documents are true to the code."""

import re
from pathlib import Path

import pytest

from normstream.adaptation.recipe import NORM_MEMBERS
from normstream.service.settings import Settings

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*/README.md"))]


def test_every_setting_is_documented_with_its_default():
    rows = dict(re.findall(r"^\| `NORMSTREAM_(\w+)` \| (.*?) \|", (ROOT / "docs/settings.md").read_text(), re.M))
    assert sorted(rows) == sorted(name.upper() for name in Settings.model_fields)
    for name in Settings.model_fields.keys() - {"models", "threads"}:
        default = Settings.model_fields[name].default
        assert rows[name.upper()].strip("`") == (
            f"{default:g}" if isinstance(default, float) else str(default or "none")
        )


def test_every_member_is_documented_with_its_defaults():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*)$", (ROOT / "docs/recipes.md").read_text(), re.M))
    assert sorted(rows) == sorted(NORM_MEMBERS)
    for name, member in NORM_MEMBERS.items():
        for field, info in member.model_fields.items():
            if field != "name":
                default = f"{info.default:g}" if isinstance(info.default, float) else str(info.default)
                assert default in rows[name], (name, field)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_is_named_exists(document):
    for name in re.findall(
        r"`((?:adaptation|service|clients|docker|tests|benchmarks|docs|\.ci)/[\w./-]+)`", document.read_text()
    ):
        assert (ROOT / name).exists(), name
