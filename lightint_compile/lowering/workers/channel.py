"""Messages between two processes: a length, then as many bytes."""

from __future__ import annotations

import contextlib
import socket
import struct

_LENGTH = struct.Struct("!Q")

_LONGEST = 1 << 30
"""Bytes of a message. More is no message of ours."""


class ChannelError(Exception):
    """The other side is gone, or sends what is no message."""


class Channel:
    """One end of a connected socket."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def send(self, message: bytes) -> None:
        """Send a message.

        Raises:
            OSError: the other side is gone.
        """
        self._socket.sendall(_LENGTH.pack(len(message)) + message)

    def receive(self, seconds: float | None = None) -> bytes:
        """The next message.

        Args:
            seconds: how long to wait for each part of it; without end unless given.

        Raises:
            ChannelError: there will be none.
            OSError: none came in time.
        """
        self._socket.settimeout(seconds)
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if length > _LONGEST:
            raise ChannelError(f"a message of {length} bytes")
        return self._exactly(length)

    def is_closed(self) -> bool:
        """Whether the other side has closed its end. What it sent is left to be received."""
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Close this end; whoever waits for a message on it gets none."""
        with contextlib.suppress(OSError):  # the other side has gone before
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _exactly(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            part = self._socket.recv(min(length - len(parts), 1 << 20))
            if not part:
                raise ChannelError("the other side is gone")
            parts += part
        return bytes(parts)
