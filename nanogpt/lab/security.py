"""Decides which requests the server answers.

A refused request gets no data, only a message with a status: 401 if the password is missing or
wrong, otherwise 403. The server checks three things besides the password:

- The path must begin with a random token, which no other web page knows.
- The header Host must name this server. This stops DNS rebinding, where an attacker's domain
  resolves to this server. If other computers may use the page (--host), every name is accepted.
- The header Origin must not name another site.
"""

import base64
import secrets
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """Wraps the application; checks the host, origin, token and password of every request."""

    def __init__(
        self, app: ASGIApp, token: str, hosts: Collection[str] | None, password: str | None
    ) -> None:
        """`hosts` lists the accepted values of the header Host; None accepts every host."""
        self.app, self.token, self.hosts, self.password = app, token, hosts, password

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        refusal = self.refuse(scope)
        app: ASGIApp = refusal or self.app
        await app(scope, receive, send_with_headers)

    def refuse(self, scope: Scope) -> PlainTextResponse | None:
        """Return the response that refuses a request; None if the application may answer it."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts is not None and host not in self.hosts:
            return PlainTextResponse("unknown host: use the address that the lab prints", 403)
        if headers.get("origin", f"http://{host}") != f"http://{host}":
            return PlainTextResponse("this request comes from another site", 403)
        if self.password is not None and not self._knows_password(headers):
            challenge = {"WWW-Authenticate": 'Basic realm="nanogpt lab", charset="UTF-8"'}
            return PlainTextResponse("password required", 401, challenge)
        token = scope["path"].removeprefix("/").partition("/")[0]
        if not secrets.compare_digest(token.encode(), self.token.encode()):
            return PlainTextResponse("open the whole address that the lab prints", 403)
        return None

    def _knows_password(self, headers: Headers) -> bool:
        assert self.password is not None
        scheme, _, encoded = headers.get("authorization", "").partition(" ")
        try:
            given = base64.b64decode(encoded, validate=True).partition(b":")[2]
        except ValueError:
            return False
        return scheme.lower() == "basic" and secrets.compare_digest(given, self.password.encode())
