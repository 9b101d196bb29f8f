"""`normstream doctor`: checks that the server can run here, and says how to mend what cannot."""

import importlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

INSTALL = 'pip install "normstream[server]"'


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    ok: bool
    found: str
    mend: str = ""


def doctor(
    redis: Annotated[str | None, typer.Option(metavar="URL", help="Also check this Redis.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check torch, torchvision, Redis and a model, and say how to mend what is wrong."""
    findings = []
    for finding in examine(redis):
        findings.append(finding)
        if not as_json:
            _tell(finding)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


def examine(redis: str | None) -> Iterator[Finding]:
    """The checks, one after another; what needs a thing that is missing fails too, with its own reason."""
    yield _tried("torch", _torch, f"{INSTALL}; for the CPU build alone see docs/install.md")
    yield _tried("torchvision", _torchvision, "install the torchvision made for your torch (docs/install.md)")
    yield _tried("model", _model, INSTALL)
    yield _tried("embedded Redis", _embedded_redis, f"{INSTALL}, or give the server a Redis of yours with --redis URL")
    if redis:
        yield _tried(f"Redis at {redis}", lambda: _redis(redis), "start it, or correct the URL")


def _tried(check: str, attempt: Callable[[], str], mend: str) -> Finding:
    try:
        return Finding(check, ok=True, found=attempt())
    except Exception as error:
        # Whatever goes wrong is what the doctor is for.
        return Finding(check, ok=False, found=f"{type(error).__name__}: {error}", mend=mend)


def _tell(finding: Finding) -> None:
    mark = typer.style("ok  ", fg="green") if finding.ok else typer.style("FAIL", fg="red", bold=True)
    typer.echo(f"{mark} {finding.check}: {finding.found}")
    if finding.mend:
        typer.echo(f"     mend: {finding.mend}")


def _torch() -> str:
    torch = importlib.import_module("torch")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{torch.__version__}, {torch.get_num_threads()} threads, {gpu}"


def _torchvision() -> str:
    importlib.import_module("normstream.adaptation.torchvision_ops").make_importable()
    return str(importlib.import_module("torchvision").__version__)


def _model() -> str:
    from normstream.adaptation import PRESETS, ModelSpec, Request, initial_state, load_model, step  # noqa: PLC0415

    hosted = load_model(ModelSpec(architecture="tf_efficientnet_lite0"))
    torch = importlib.import_module("torch")
    image = torch.zeros(1, *hosted.preprocessing.input_size)
    step(hosted, [Request(initial_state(hosted, PRESETS["alpha_bn"]), image)])
    return f"{hosted.name}, {hosted.fingerprint[:19]}..., one adaptation step done"


def _embedded_redis() -> str:
    import asyncio  # noqa: PLC0415

    from normstream.service.storage.embedded_redis import EmbeddedRedis  # noqa: PLC0415

    async def start() -> str:
        with tempfile.TemporaryDirectory(prefix="normstream-") as folder:
            async with EmbeddedRedis(Path(folder)) as embedded:
                return await _version(embedded.url)

    return asyncio.run(start())


def _redis(url: str) -> str:
    import asyncio  # noqa: PLC0415

    return asyncio.run(_version(url))


async def _version(url: str) -> str:
    from normstream.service.storage.redis_link import connect  # noqa: PLC0415
    from normstream.service.storage.store import Store  # noqa: PLC0415

    redis = connect(url)
    store = Store(redis)
    try:
        warnings = await store.check()
        info = await redis.info("server")
    finally:
        await store.aclose()
    return " ".join(
        [f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}", *warnings]
    )
