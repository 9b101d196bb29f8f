"""The files of a package, for those who look for one without making it: no ONNX is needed here."""

import hashlib
import json
from pathlib import Path

MANIFEST = "manifest.json"


def place_of(folder: Path, fingerprint: str) -> Path:
    """Where the package of a model lies in a folder of packages."""
    return folder / fingerprint.removeprefix("sha256:")


def scratch_prefix(process: int) -> str:
    """How the folder begins in which a process makes a package, for who has to tidy up after it."""
    return f".export-{process}-"


def is_whole(place: Path) -> bool:
    """Whether a package's files are those that its manifest lists."""
    try:
        files = json.loads((place / MANIFEST).read_bytes())["files"]
        return all(listed(place / name) == entry for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def listed(path: Path) -> dict[str, int | str]:
    """A file as a manifest lists it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
