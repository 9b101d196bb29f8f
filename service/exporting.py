"""Making a model's package in a process of its own.

    server ──what is asked, as JSON──> python -m normstream.service.exporting ──where it lies, or why not──> server

torch's exporter changes settings of torch for the whole process, and takes many seconds in which nothing else of torch
may run: a server that exported would predict nothing meanwhile.
"""

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from normstream.adaptation import HostingError, ModelSpec, load_model
from normstream.adaptation.package_files import scratch_prefix

_LOG_TAIL = 500  # characters


async def exported(spec: ModelSpec, fingerprint: str, folder: Path, threads: int) -> Path:
    """The package of a model, once it has been made.

    Args:
        spec: Of the model.
        fingerprint: That it must have.
        folder: Where packages are kept.
        threads: Cores that torch may use.

    Raises:
        HostingError: when the model cannot be exported, or is no longer the one of the fingerprint.
        OSError: when that is for now alone: model or package cannot be read or written, the process was killed.
    """
    command = (sys.executable, "-P", "-m", __name__)  # -P: not what lies in the working directory
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    asked = {
        "spec": spec.model_dump(mode="json"),
        "fingerprint": fingerprint,
        "folder": str(folder),
        "threads": threads,
    }
    try:
        answer, log = await process.communicate(json.dumps(asked).encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if process.returncode != 0:
            _tidy(folder, process.pid)
    if process.returncode != 0:
        tail = log.decode(errors="replace").strip()[-_LOG_TAIL:]
        raise OSError(f"the process that exports ended with status {process.returncode}: {tail}")
    told = json.loads(answer)
    if "refused" in told:
        raise HostingError(told["refused"])
    if "failed" in told:
        raise OSError(told["failed"])
    return Path(told["place"])


def _tidy(folder: Path, process: int) -> None:
    """Remove what a process that was killed has left half made."""
    for half_made in folder.glob(f"{scratch_prefix(process)}*"):
        shutil.rmtree(half_made, ignore_errors=True)


def main() -> None:
    """Make the package that is asked for on the standard input; the standard output has the answer and no more."""
    asked = json.load(sys.stdin)
    torch.set_num_threads(asked["threads"])
    with contextlib.redirect_stdout(sys.stderr):
        told = _made(ModelSpec.model_validate(asked["spec"]), asked["fingerprint"], Path(asked["folder"]))
    json.dump(told, sys.stdout)


def _made(spec: ModelSpec, fingerprint: str, folder: Path) -> dict[str, str]:
    # Here alone: the server needs nothing of ONNX.
    from normstream.adaptation.export import export  # noqa: PLC0415

    try:
        hosted = load_model(spec)
    except HostingError as error:  # It could be loaded when the server began.
        return {"failed": str(error)}
    if hosted.fingerprint != fingerprint:
        return {"refused": "its weights have changed since this server loaded them; start the server again"}
    try:
        return {"place": str(export(hosted, folder))}
    except HostingError as error:
        return {"refused": str(error)}
    except OSError as error:
        return {"failed": str(error)}


if __name__ == "__main__":
    main()
