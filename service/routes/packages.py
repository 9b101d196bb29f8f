"""What an edge needs to run a model: a manifest, and the files it names."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import FileResponse

from normstream.adaptation.package_files import MANIFEST
from normstream.service.dependencies import TheAdmission, ThePackages, TheStreams
from normstream.service.errors import NotFound, RangeUnsatisfiable

router = APIRouter(prefix="/v1/models", tags=["packages"])

ModelName = Annotated[str, Path(max_length=200)]
BYTES = "application/octet-stream"
_ETAG = {"ETag": {"schema": {"type": "string"}}}
_NOT_MODIFIED: dict[str, Any] = {"description": "If-None-Match has it."}
_FILE = {"content": {BYTES: {"schema": {"type": "string", "format": "binary"}}}, "headers": _ETAG}
_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))")


@router.get(
    "/{name}/package",
    response_class=Response,
    responses={
        200: {"content": {"application/json": {"schema": {"type": "object"}}}, "headers": _ETAG},
        304: _NOT_MODIFIED,
    },
)
async def show_package(
    name: ModelName, request: Request, streams: TheStreams, packages: ThePackages, admission: TheAdmission
) -> Response:
    """The manifest of a model's package; the first time the package is made, which takes some seconds."""
    package = await admission.until_draining(packages.of(streams.models[name]))
    etag = f'"{package.manifest["fingerprint"]}"'
    if _has(request, etag):
        return Response(status_code=304, headers={"ETag": etag})
    return FileResponse(package.folder / MANIFEST, media_type="application/json", headers={"ETag": etag})


@router.get(
    "/{name}/package/{file}",
    response_class=Response,
    responses={200: _FILE, 206: {"description": "The part that Range asks for.", **_FILE}, 304: _NOT_MODIFIED},
)
async def download_package_file(
    name: ModelName,
    file: Annotated[str, Path(max_length=200, description="a file that the manifest names")],
    request: Request,
    streams: TheStreams,
    packages: ThePackages,
    admission: TheAdmission,
) -> Response:
    """A file of a model's package, or the part of it that the header Range asks for."""
    package = await admission.until_draining(packages.of(streams.models[name]))
    if file not in package.files:
        raise NotFound(f"The package of model {name!r} has no file {file[:100]!r}; it has {', '.join(package.files)}.")
    etag = f'"{package.files[file]}"'
    if _has(request, etag):
        return Response(status_code=304, headers={"ETag": etag})
    _check_range(request, (package.folder / file).stat().st_size)
    return FileResponse(package.folder / file, media_type=BYTES, headers={"ETag": etag})


def _has(request: Request, etag: str) -> bool:
    known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    return etag in known or known == ["*"]


def _check_range(request: Request, size: int) -> None:
    """Refuse a part that is not there, and pass over a Range that is none of ours, as RFC 9110 lets a server do."""
    asked = _RANGE.fullmatch(request.headers.get("range", ""))
    if asked is None or (asked[1] and asked[2] and int(asked[2]) < int(asked[1])):
        request.scope["headers"] = [each for each in request.scope["headers"] if each[0] != b"range"]
    elif int(asked[1] or 0) >= size or asked[3] == "0":
        raise RangeUnsatisfiable(
            f"The file has {size} bytes; the part asked for begins after them.",
            headers={"Content-Range": f"bytes */{size}"},
        )
