"""The status of an edge for Prometheus, in its text format, by the standard library's server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from normstream.clients.edge.status import Status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
QUANTILES = {"p50": "0.5", "p95": "0.95"}


def exposition(status: Status) -> str:
    """Return a status in Prometheus' text format."""
    counters = status.counters
    lines = [
        *_metric("images_total", "counter", "Images predicted.", counters.seen),
        *_metric("taken_in_total", "counter", "Images taken into the edge's own statistics.", counters.taken_in),
        *_labelled("excluded_total", "counter", "Images not uploaded.", "reason", counters.excluded),
        *_metric("uploaded_total", "counter", "Samples that the server has taken.", counters.uploaded),
        *_metric("unwanted_total", "counter", "Samples that the server refused.", counters.unwanted),
        *_metric("sent_bytes_total", "counter", "Bytes sent to the server.", counters.bytes_up),
        *_metric("received_bytes_total", "counter", "Bytes received from the server.", counters.bytes_down),
        *_metric("updates_total", "counter", "Updates taken into use.", counters.updates),
        *_metric("rolled_back_total", "counter", "Updates rolled back.", counters.rolled_back),
        *_metric("rejected_total", "counter", "Updates refused as corrupt, foreign or unsigned.", counters.rejected),
        *_metric("spool_samples", "gauge", "Samples that wait to be uploaded.", status.waiting),
        *_metric("spool_bytes", "gauge", "Bytes of the samples that wait.", status.waiting_bytes),
        *_metric("healthy", "gauge", "1 when the edge's status names no problem.", int(not status.problem)),
    ]
    seconds = {QUANTILES[name]: value / 1000 for name, value in status.latency_ms.items()}
    lines += _labelled("step_seconds", "gauge", "Time of a step, of the last ones.", "quantile", seconds)
    if status.age_s is not None:
        lines += _metric("version_age_seconds", "gauge", "Age of the parameters in use.", round(status.age_s, 3))
    if status.last_contact_at is not None:
        lines += _metric("last_contact_seconds", "gauge", "When the server last answered.", status.last_contact_at)
    labels = {"edge": status.edge, "model": status.model, "version": status.version or "source"}
    inner = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    lines += [*_head("info", "gauge", "What runs."), f"normstream_edge_info{{{inner}}} 1"]
    return "\n".join(lines) + "\n"


@contextmanager
def serving(port: int, status: Callable[[], Status], host: str = "127.0.0.1") -> Iterator[int]:
    """Serve `/metrics` until the block ends, and yield the port, which the system chooses for 0."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            body = exposition(status()).encode()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
            """Say nothing: the output is that of the predictions."""

    with ThreadingHTTPServer((host, port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="normstream-metrics")
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def _metric(name: str, kind: str, text: str, value: float) -> list[str]:
    return [*_head(name, kind, text), f"normstream_edge_{name} {value}"]


def _labelled(name: str, kind: str, text: str, label: str, values: dict[str, float] | dict[str, int]) -> list[str]:
    rows = [f'normstream_edge_{name}{{{label}="{_escaped(key)}"}} {value}' for key, value in sorted(values.items())]
    return [*_head(name, kind, text), *rows] if rows else []


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP normstream_edge_{name} {text}", f"# TYPE normstream_edge_{name} {kind}"]


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
