"""Around the application: request ids, who may ask, headers of every answer, and what the log says.

In: ASGI messages of one request. Out: the same, or a refusal before the application sees it. It is plain ASGI, so
that a body streams through it. It knows nothing of images.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipmole.serve.errors import INTERNAL, Problem
from clipmole.serve.metrics import Metrics
from clipmole.serve.service import where

log = logging.getLogger("clipmole.serve")

SECURITY_HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' blob: data:",
            "connect-src 'self'",
            "manifest-src 'self'",
            "form-action 'none'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
PROTECTED = ("/v1/", "/metrics")
PROBES = ("/healthz", "/readyz")  # asked by supervisors under an address of their own; they tell nothing
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ROUTES = ("/v1/detect", "/v1/detect/bytes", "/v1/detectors", "/healthz", "/readyz", "/metrics", "/openapi.json", "/")


class SecurityMiddleware:
    """The outermost layer.

    Args:
        token: the bearer token that /v1 and /metrics ask for; None: none.
        hosts: names that a request's Host may be; (): any.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, token: str | None, hosts: tuple[str, ...]) -> None:
        self._app, self._metrics = app, metrics
        self._digest = _token_digest(token) if token is not None else None
        self._hosts = {host.lower().strip("[]") for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send)
        try:
            self._admit(Headers(scope=scope), scope)
            # HEAD is GET without the body, which uvicorn leaves out.
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            await self._app({**scope, "method": method}, exchange.receive, exchange.send)
        except Problem as problem:
            await exchange.refuse(problem)
        except Exception as error:
            log.error("request %s failed: %s", exchange.id, where(error))
            if not exchange.status:
                await exchange.refuse(Problem("internal", INTERNAL))
            elif not exchange.complete:
                raise ConnectionAbortedError("the answer could not be finished") from None
        finally:
            self._account(scope, exchange)

    def _admit(self, headers: Headers, scope: Scope) -> None:
        """Raise `Problem` for a request that is not meant for this server, or not allowed to be made."""
        host = headers.get("host", "")
        if self._hosts and _name(host) not in self._hosts and scope["path"] not in PROBES:
            raise Problem("wrong_host", "the request is for a host that this server is not; see --allowed-host")
        origin = headers.get("origin")
        foreign = origin is not None and origin.partition("://")[2].lower() != host.lower()
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and (
            foreign or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
        ):
            raise Problem("cross_origin", "pages of other sites may not use this server")
        if self._digest is None or not scope["path"].startswith(PROTECTED):
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(_token_digest(given.strip()), self._digest):
            raise Problem("unauthorized", "this server requires a token: Authorization: Bearer TOKEN")

    def _account(self, scope: Scope, exchange: Exchange) -> None:
        seconds = time.monotonic() - exchange.began
        path = scope["path"]
        route = path if path in _ROUTES else "/static" if path.startswith("/static/") else "other"
        status = str(exchange.status or 499)  # nginx's number for a client that went away
        self._metrics.requests.labels(route, status, exchange.code).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "OPTIONS") else "other"
        log.info("%s %s %s %s %s %.0f ms", exchange.id, method, route, status, exchange.code, 1000 * seconds)


class Exchange:
    """One request and its answer; kept in the request's state as `exchange`.

    Attributes:
        id: the client's X-Request-ID if it is of harmless characters, else a random one.
        status, code: of the answer; 0 and "-" before there is one, or if it is no error.
        complete: the answer was given to the server in full.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.began = time.monotonic()
        given = Headers(scope=scope).get("x-request-id", "")
        self.id = given if _REQUEST_ID.fullmatch(given) else new_request_id()
        self.status, self.code, self.complete = 0, "-", False
        self._receive, self._send = receive, send
        headers = Headers(scope=scope)
        self._unread = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        self._api = not (scope["path"] == "/" or scope["path"].startswith("/static/"))
        # Nobody needs a part of a file from here, and many small parts cost much.
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name.lower() != b"range"]
        scope.setdefault("state", {})
        scope["state"]["exchange"] = self

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.id
            for name, value in SECURITY_HEADERS.items():
                headers[name] = value
            headers["Cache-Control"] = "no-store" if self._api else "no-cache"
            if self._unread:  # what is left of the body must not be taken for the next request
                headers["Connection"] = "close"
        await self._send(message)
        self.complete = message["type"] == "http.response.body" and not message.get("more_body", False)

    async def refuse(self, problem: Problem) -> None:
        """Answer with an error."""
        self.code = problem.code
        body = refusal(problem, self.id)
        headers = {"content-type": "application/json", "content-length": str(len(body)), **problem.headers}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})


def new_request_id() -> str:
    """16 random hexadecimal digits."""
    return secrets.token_hex(8)


def refusal(problem: Problem, request_id: str) -> bytes:
    """The JSON of a refused request."""
    return json.dumps({"error": {"code": problem.code, "message": problem.message}, "request_id": request_id}).encode()


def allowed_hosts(host: str, given: tuple[str, ...]) -> tuple[str, ...]:
    """The names to answer to: those that were given; else, on loopback, its names; else () for any.

    A page of another site can have its own name point to 127.0.0.1 (DNS rebinding), and would then be of the same
    origin as this server; its name gives it away.
    """
    if given:
        return given
    return ("localhost", "127.0.0.1", "::1", host) if is_loopback(host) else ()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that is bound to `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _name(host: str) -> str:
    """The name in a Host header, without its port, lower-case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _token_digest(token: str) -> bytes:
    """A digest, of equal length for every token, so that a comparison does not reveal the length."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
