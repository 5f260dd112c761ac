"""Who may see the live app: one guard before its pages, videos and web sockets."""

from __future__ import annotations

import hmac
from http.cookies import SimpleCookie
from ipaddress import ip_address
from urllib.parse import parse_qs

from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE = "vla_token"


class Guard:
    """Nothing passes without the token; with none set, nothing passes but this machine's own."""

    def __init__(self, inner: ASGIApp, token: str = "") -> None:
        self.inner, self.token = inner, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.inner(scope, receive, send)
            return
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        given = parse_qs(scope["query_string"].decode()).get("token", [""])[0]
        if self.token and scope["type"] == "http" and self._right(given):
            answer: Response = RedirectResponse(scope["path"])
            answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
            await answer(scope, receive, send)
        elif self._allowed(headers):
            await self.inner(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 4401})
        else:
            await Response("open this app with its ?token=…", 401)(scope, receive, send)

    def _allowed(self, headers: dict[str, str]) -> bool:
        if self.token:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
            return cookie is not None and self._right(cookie.value)
        # Without a token, a foreign name for this machine is a page of somebody else's.
        return loopback(headers.get("host", "").rpartition(":")[0] or headers.get("host", ""))

    def _right(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())


def loopback(host: str) -> bool:
    """Whether an address can only be reached from this machine."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
