"""Bodies that are too large are refused before they are read whole."""

from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from normstream.service.errors import TooLarge, respond


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """ASGI middleware: a 413 by the announced length, or as soon as more has come than is allowed."""

    app: ASGIApp
    max_bytes: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self.max_bytes:
            await respond(self._problem(f"{announced} bytes"))(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_bytes:
                raise self._problem(f"more than {self.max_bytes} bytes")
            return message

        await self.app(scope, counted, send)

    def _problem(self, seen: str) -> TooLarge:
        return TooLarge(f"The body has {seen}; the limit is {self.max_bytes}. Send fewer or smaller images.")
