"""`lightint play` itself: compile, then serve until it is stopped."""

from __future__ import annotations

import contextlib
import socket as sockets
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console

from lightint_compile.errors import InputError, told
from lightint_compile.play.needed import check_packages
from lightint_compile.play.opening import Played


def play(
    name: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    preset: str,
    device: str | None = None,
    seed: int = 0,
    weights: Path | None = None,
) -> None:
    """Serve the page of a model; it returns when it is interrupted.

    Raises:
        InputError: the extra `play` is not installed, there is no such model, or nothing can be served at that address.
        OptionError: there is no such preset.
        DeviceError: the model is too large for a CPU, or there is no such device.
    """
    check_packages()
    import uvicorn

    from lightint_compile.play.app import make_app

    played = Played.open(name, preset=preset, device=device, seed=seed, weights=weights)
    socket = _bound(host, port)
    warnings.filterwarnings("ignore", message=".*no trained weights")  # said when it was opened
    console = Console()
    console.print(f"{name}: {played.model}\non {played.device}, accelerated by preset={preset}", highlight=False)
    # One thread from the first call on: what is compiled and decided is told apart by thread.
    with socket, ThreadPoolExecutor(1) as thread:
        start = time.perf_counter()
        with console.status("compiling") as status:
            thread.submit(_warm_up, played, status.update).result()
        console.print(f"compiled in {time.perf_counter() - start:.0f} s", highlight=False)
        console.print(f"open http://{host}:{port} and steer with W A S D and the arrows; Ctrl+C ends", highlight=False)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(make_app(played, thread), log_level="warning")).run(sockets=[socket])


def _bound(host: str, port: int) -> sockets.socket:
    """A socket at the address, before anything is compiled; it listens once the page is served."""
    made = sockets.socket(sockets.AF_INET6 if ":" in host else sockets.AF_INET)
    try:
        made.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError as error:
        made.close()
        where, fix = f"--host {host} --port {port}", "name another port, or end what is served there"
        raise InputError("nothing can be served there", where=where, why=told(error), fix=fix) from error
    return made


def _warm_up(played: Played, tell: Callable[[str], None]) -> None:
    for left in played.warm_up():
        tell(f"compiling; {left} more chunks to walk")
