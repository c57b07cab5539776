"""One open page: it says which keys are held, and is sent chunk after chunk while some are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from starlette.websockets import WebSocket, WebSocketDisconnect

from lightint_compile.errors import LightintError, one_line, told
from lightint_compile.play import messages
from lightint_compile.play.opening import Played
from lightint_compile.play.walking import Steered, Walking, pressed

T = TypeVar("T")


class Connection:
    """A page and its walk. The model runs in `thread`, one call at a time; messages are read meanwhile."""

    def __init__(self, socket: WebSocket, played: Played, thread: Executor) -> None:
        self._socket, self._played, self._thread = socket, played, thread
        self._keys: frozenset[str] = frozenset()
        self._accelerated, self._again, self._closed = True, True, False
        self._seed = played.seed
        self._changed = asyncio.Event()

    def replace(self) -> None:
        """Another page has opened: this one ends after the chunk that is being made."""
        self._closed = True
        self._changed.set()

    async def run(self) -> None:
        """Until the page is closed or replaced."""
        reading = asyncio.create_task(self._read())
        gone = (WebSocketDisconnect, RuntimeError)  # starlette raises RuntimeError for a page that has gone
        try:
            with contextlib.suppress(*gone):
                await self._walk()
                await self._tell({"kind": "replaced", "says": "another page has opened, and this one has ended"})
                await self._socket.close()
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError, *gone):
                await reading

    async def _read(self) -> None:
        try:
            while True:
                self._heard(await self._socket.receive_json())
        finally:
            self.replace()

    def _heard(self, message: Any) -> None:
        kind = message.get("kind") if isinstance(message, dict) else None
        if kind == "keys":
            self._keys = pressed([str(key) for key in message.get("keys", ())])
        elif kind == "accelerate":
            self._accelerated = bool(message.get("on"))
        elif kind == "again":
            self._again, self._seed = True, int(message.get("seed", self._seed))
        self._changed.set()

    async def _walk(self) -> None:
        walk: Walking | None = None
        while not self._closed:
            if self._again or walk is None:
                self._again, walk = False, await self._begun()
            elif walk.is_over:
                self._keys = frozenset()
                await self._tell({"kind": "over", "says": "the walk is as long as it may become: begin another"})
                await self._wait()
            elif self._keys:
                await self._go(walk)
            else:
                await self._tell({"kind": "still", "says": "hold W, A, S or D, or an arrow"})
                await self._wait()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _begun(self) -> Walking:
        walk = await self._in_thread(lambda: self._played.walking(self._seed))
        await self._tell(messages.hello(self._played, walk))
        made = await self._in_thread(walk.begin)
        if made is not None:
            await self._show(walk, made, False)
        return walk

    async def _go(self, walk: Walking) -> None:
        keys, accelerated = self._keys, self._accelerated
        try:
            made = await self._in_thread(lambda: walk.go(keys, accelerated))
        except Exception as error:
            self._keys = frozenset()
            says = one_line(error) if isinstance(error, LightintError) else told(error)
            await self._tell({"kind": "error", "says": says})
            return
        await self._show(walk, made, accelerated)

    async def _show(self, walk: Walking, made: Steered, accelerated: bool) -> None:
        await self._tell(messages.chunk(walk, made, accelerated))
        for frame in made.frames:
            await self._socket.send_bytes(messages.png(frame))

    async def _tell(self, message: dict[str, Any]) -> None:
        await self._socket.send_json(message)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)
