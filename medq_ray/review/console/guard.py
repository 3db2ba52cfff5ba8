"""What holds for every request and reply, whoever sends it: a small body, strict headers."""

from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_BODY = 64 * 1024
"""Bytes; the longest label has 4,000 characters, of at most 12 bytes each in JSON."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
STATIC = "/static/"


class Guard:
    """An ASGI application around ours. A body is read as a whole before anything is done with it, so that also one
    whose sender does not say how long it is ends at the limit."""

    def __init__(self, app: ASGIApp, refused: Callable[[Request, int, str], Response]):
        self.app, self.refused = app, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        kept = "no-cache" if scope["path"].startswith(STATIC) else "no-store"

        async def strict(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS | {"cache-control": kept})
            await send(message)

        if scope.get("root_path"):  # a prefix of Ray Serve's, under which no link of the pages leads anywhere
            why = "the console stands at '/': serve it without a route prefix"
            await self._refuse(404, why, scope, receive, strict)
            return
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > LARGEST_BODY:
                await self._refuse(413, f"the body has more than {LARGEST_BODY:,} bytes", scope, receive, strict)
                return
            if not message.get("more_body"):
                break
        waiting = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def again() -> Message:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, again, strict)

    async def _refuse(self, status: int, why: str, scope: Scope, receive: Receive, send: Send) -> None:
        response = await run_in_threadpool(self.refused, Request(scope), status, why)
        await response(scope, receive, send)
