"""The web application: the page, its script and style, and the socket of a walk."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from lightint_compile.play.connection import Connection
from lightint_compile.play.opening import Played

ASSETS = {
    "/": ("page.html", "text/html"),
    "/play.js": ("play.js", "text/javascript"),
    "/from_above.js": ("from_above.js", "text/javascript"),
    "/play.css": ("play.css", "text/css"),
}


class Pages:
    """Who is connected: the newest page, one at a time."""

    def __init__(self, played: Played, thread: ThreadPoolExecutor) -> None:
        self._played, self._thread = played, thread
        self._open: Connection | None = None

    async def walk(self, socket: WebSocket) -> None:
        """A page that has opened; the one before it ends."""
        if not _is_own(socket):
            await socket.close(1008)
            return
        await socket.accept()
        if self._open is not None:
            self._open.replace()
        self._open = mine = Connection(socket, self._played, self._thread)
        await mine.run()
        if self._open is mine:
            self._open = None


def _is_own(socket: WebSocket) -> bool:
    """Whether the page came from here: another site's script may not steer."""
    origin = socket.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == socket.headers.get("host")


def make_app(played: Played, thread: ThreadPoolExecutor) -> Starlette:
    """The application for one model, which runs in a thread of its own."""
    routes = [Route(path, _asset, methods=["GET"]) for path in ASSETS]
    return Starlette(routes=[*routes, WebSocketRoute("/walk", Pages(played, thread).walk)])


def _asset(request: Request) -> Response:
    name, kind = ASSETS[request.url.path]
    text = files(__package__).joinpath("static", name).read_text("utf-8")
    return Response(text, media_type=kind, headers={"cache-control": "no-store"})
