"""Guard: what stands before every request: limits, timeouts, logs and metrics."""

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import HTTPException
from starlette.responses import JSONResponse

from recsys.retrieval.service.config import LOOPBACK
from recsys.retrieval.service.logs import log, say
from recsys.retrieval.service.service import Service

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

ALWAYS = {"/healthz", "/readyz", "/metrics"}
"""Answered however many requests wait, so that a full service is seen to be full, not dead."""
UNTIMED = {"/reload", "/items", "/items/remove", "/items/availability", "/items/compact"}
"""Changes may load a model, encode texts or build an index, or wait for one that does; they end
when they have ended, so that none begins before. Their bodies are waited for like all others."""
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
]


class Guard:
    """An ASGI application around another one. Each request has an id, in its log and its answer."""

    def __init__(self, app: Application, service: Service):
        self._app = app
        self._service = service
        self._process, self._numbers = secrets.token_hex(4), itertools.count(1)
        config = service.config
        # A page of another site may have a browser ask a service of its own machine, by address or
        # under a name that leads there. Without keys nothing but the browser's own words in Origin
        # and Host tells it from the engineer.
        self._local_names_alone = config.is_local and service.keys is None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        number = f"{self._process}-{next(self._numbers)}"
        exchange = _Exchange(number, receive, send, self._service.config.max_body)
        self._service.waiting += 1
        try:
            await self._answered(scope, exchange)
        finally:
            self._service.waiting -= 1
            route = getattr(scope.get("route"), "path_format", None) or "none"
            seconds = time.perf_counter() - started
            self._service.metrics.request(scope["method"], route, exchange.status, seconds)
            say(
                "request",
                logging.INFO if exchange.status < 500 else logging.ERROR,
                id=exchange.id,
                method=scope["method"],
                route=route,
                status=exchange.status,
                ms=round(1e3 * seconds, 2),
                **scope.get("recsys_log", {}),
            )

    async def _answered(self, scope: MutableMapping[str, Any], exchange: "_Exchange") -> None:
        """Refused, or handed on and seen to an end."""
        if refusal := self._refusal(scope):
            await refusal(scope, exchange.receive, exchange.send)
            return
        limit_s: float | None = self._service.config.timeout_s
        if scope["method"] == "POST" and scope["path"] in UNTIMED:
            exchange.body_within(self._service.config.timeout_s)
            limit_s = None
        try:
            async with asyncio.timeout(limit_s):
                await self._app(scope, exchange.receive, exchange.send)
            return
        except TimeoutError:
            status, error = 504, f"not answered within {self._service.config.timeout_s:g} s"
        except Exception:
            status, error = 500, f"the service failed; its log says how, under {exchange.id}"
            log.exception("failure", extra={"fields": {"id": exchange.id}})
        if exchange.status == 0:
            answer = JSONResponse({"error": error}, status)
            await answer(scope, exchange.receive, exchange.send)

    def _refusal(self, scope: MutableMapping[str, Any]) -> JSONResponse | None:
        """Why a request is not looked at, if so."""
        headers = dict(scope["headers"])
        if self._local_names_alone and _host(headers.get(b"host", b"")) not in LOOPBACK:
            names = ", ".join(LOOPBACK)
            error = f"without keys the service is asked as one of {names}"
            return JSONResponse({"error": error}, 403)
        # A browser says with each POST which site's page sends it; following a link it does not.
        origin = headers.get(b"origin")
        elsewhere = origin is not None and _host(origin.partition(b"://")[2]) not in LOOPBACK
        if self._local_names_alone and elsewhere:
            error = "without keys no page of another site may ask"
            return JSONResponse({"error": error}, 403)
        if int(_digits(headers.get(b"content-length", b"0"))) > self._service.config.max_body:
            return JSONResponse({"error": _too_long(self._service.config.max_body)}, 413)
        if self._service.waiting > self._service.config.max_waiting and scope["path"] not in ALWAYS:
            error = "too many requests are at work"
            return JSONResponse({"error": error}, 503, {"retry-after": "1"})
        return None


class _Exchange:
    """One request's two directions, counted."""

    def __init__(self, number: str, receive: Receive, send: Send, max_body: int):
        self.id = number
        self.status = 0
        self._receive, self._send = receive, send
        self._left = self._max_body = max_body
        self._body_s = 0.0
        self._body_until: float | None = None

    def body_within(self, seconds: float) -> None:
        """Answer 408 where the whole body has not come so many seconds from now.

        It is read before the key is looked at, so that whoever sends none would hold a place.
        """
        self._body_s = seconds
        self._body_until = asyncio.get_running_loop().time() + seconds

    async def receive(self) -> Message:
        """The next message. HTTPException where the body is too long or does not come."""
        try:
            async with asyncio.timeout_at(self._body_until):
                message = await self._receive()
        except TimeoutError:
            # Nobody reads what may still come of it.
            closing = {"connection": "close"}
            error = f"the body did not come within {self._body_s:g} s"
            raise HTTPException(408, error, closing) from None
        if not message.get("more_body", False):
            self._body_until = None
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise HTTPException(413, _too_long(self._max_body))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message["headers"], *HEADERS, (b"x-request-id", self.id.encode())]
            message = {**message, "headers": headers}
        await self._send(message)


def _too_long(max_body: int) -> str:
    return f"a body has at most {max_body:,} bytes"


def _host(header: bytes) -> str:
    """The name in a Host header, or behind the scheme of an Origin, without its port."""
    text = header.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


def _digits(header: bytes) -> str:
    """A length; the server has refused what is none."""
    return header.decode("latin-1") if header.isdigit() else "0"
