"""`normstream serve`: the service as a process. Found by the command line through an entry point."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from normstream.service.tuning import keep_memory, spin_briefly, uncollected

LogLevel = Literal["debug", "info", "warning", "error"]


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    data: Annotated[Path | None, typer.Option(help="Folder of the Redis that the server starts.")] = None,
    redis: Annotated[
        str | None, typer.Option(metavar="URL", help="Use this Redis: redis://, rediss://, unix://.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Model to host, may be repeated, the first is the default: a timm name, or"
            " name=N,architecture=A,checkpoint=FILE,classes=C, or seed=N for an untrained one.",
        ),
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="How much is logged.")] = "info",
) -> None:
    """Start the server. Further settings are NORMSTREAM_... environment variables (docs/settings.md)."""
    keep_memory()
    spin_briefly()
    with uncollected():
        # Imported here: the command line must start without torch.
        from pydantic import ValidationError  # noqa: PLC0415

        from normstream.adaptation.recipe import explain  # noqa: PLC0415
        from normstream.service.server import run  # noqa: PLC0415
        from normstream.service.settings import Settings  # noqa: PLC0415

    given = {"data": data, "redis_url": redis, "models": model or None}
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        typer.echo(f"Error: {explain(error)}", err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(run(settings, host, port, log_level))
