"""`lightint play` itself: compile, then serve until it is stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console

from lightint_compile.play.needed import check_packages
from lightint_compile.play.opening import Played


def play(
    name: str, *, host: str = "127.0.0.1", port: int = 8000, preset: str, device: str | None = None, seed: int = 0
) -> None:
    """Serve the page of a model; it returns when it is interrupted.

    Raises:
        InputError: the extra `play` is not installed, or there is no such model.
        OptionError: there is no such preset.
        DeviceError: the model is too large for a CPU, or there is no such device.
    """
    check_packages()
    import uvicorn

    from lightint_compile.play.app import make_app

    played = Played.open(name, preset=preset, device=device, seed=seed)
    console = Console()
    console.print(f"{name}: {played.model}\non {played.device}, accelerated by preset={preset}", highlight=False)
    # One thread from the first call on: what is compiled and decided is told apart by thread.
    with ThreadPoolExecutor(1) as thread:
        start = time.perf_counter()
        with console.status("compiling") as status:
            thread.submit(_warm_up, played, status.update).result()
        console.print(f"compiled in {time.perf_counter() - start:.0f} s", highlight=False)
        console.print(f"open http://{host}:{port} and steer with W A S D and the arrows; Ctrl+C ends", highlight=False)
        uvicorn.run(make_app(played, thread), host=host, port=port, log_level="warning")


def _warm_up(played: Played, tell: Callable[[str], None]) -> None:
    for left in played.warm_up():
        tell(f"compiling; {left} more chunks to walk")
