"""A process that compiles regions which another one sends, until that one is done or gone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
import torch.fx as fx

from lightint_compile.kernels import partial as _partial  # noqa: F401 - registers operators that only ranks use
from lightint_compile.lowering.region import anchor, compiled_alone
from lightint_compile.lowering.region_sizes import fresh_mode, guard_on
from lightint_compile.lowering.workers.channel import Channel, ChannelError
from lightint_compile.lowering.workers.parcels import Parcel, unpacked
from lightint_compile.lowering.workers.pool import LEAVE, READY
from lightint_compile.lowering.workers.switches import OnlyHereError

_LOOK = 1.0
"""Seconds between two looks for the other process."""


def main(descriptor: int, parent: int, gpu: int) -> None:
    """Compile regions until a socket is closed, or the other process is gone.

    Args:
        descriptor: of the socket.
        parent: the other process.
        gpu: the CUDA device that regions run on; below zero for the CPU.
    """
    channel = Channel(socket.socket(fileno=descriptor))
    threading.Thread(target=_leave_with, args=(channel, parent), daemon=True).start()
    with contextlib.suppress(OSError, ChannelError):
        _warm_up(gpu)
        channel.send(json.dumps({READY: True}).encode())
        while True:
            for message in _answer(channel.receive()):
                channel.send(message)
    _leave()


def _warm_up(gpu: int) -> None:
    """Compile something small, since the first compilation of a process makes much of what all need."""
    mode, graph = fresh_mode(), fx.Graph()
    tokens = graph.placeholder("tokens")
    if gpu >= 0:
        torch.cuda.set_device(gpu)
    with mode:
        value = torch.empty(64, 64, device="cpu" if gpu < 0 else f"cuda:{gpu}")
    tokens.meta["val"] = tokens.meta["example_value"] = value
    product = graph.call_function(torch.ops.aten.matmul.default, (tokens, tokens))
    graph.output((graph.call_function(torch.ops.aten.softmax.int, (product, -1)),))
    anchor(graph, mode)
    compiled_alone(fx.GraphModule({}, graph), {"fx_graph_cache": False})  # what is kept would warm no other process


def _answer(content: bytes) -> Sequence[bytes]:
    """What came of a parcel: the guard and the artifact, or an error."""
    try:
        guard, artifact = _compiled(unpacked(content))
    except OnlyHereError as reason:
        return [json.dumps({"differs": str(reason)}).encode()]
    except Exception:  # the other process compiles the region itself, and meets the error if it is one
        return [json.dumps({"error": traceback.format_exc()}).encode()]
    return [json.dumps({"guard": guard}).encode(), artifact]


def _compiled(parcel: Parcel) -> tuple[str | None, bytes]:
    with torch.inference_mode() if parcel.switches.inference else contextlib.nullcontext():
        parcel.switches.put_in_force()
        graph_module, mode, symbols = parcel.graph()
        artifact = compiled_alone(graph_module, parcel.config)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "artifact"
        artifact.save(path=str(file), format="binary")
        return guard_on(mode, symbols), file.read_bytes()


def _leave_with(channel: Channel, parent: int) -> None:
    while os.getppid() == parent and not channel.is_closed():
        time.sleep(_LOOK)
    time.sleep(LEAVE)  # what is being compiled is finished, or else half of a file would stay in a cache
    _leave()


def _leave() -> NoReturn:
    """End this process and the compilers that it has started, which are in a group of their own."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
