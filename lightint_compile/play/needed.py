"""The packages of the extra `play`."""

from __future__ import annotations

from lightint_compile.errors import extra_needed


def check_packages() -> None:
    """Raise InputError, which names the extra, where one of its packages is not installed."""
    with extra_needed("play", "the page cannot be served", "lightint play"):
        import PIL
        import starlette
        import uvicorn
        import websockets
    del PIL, starlette, uvicorn, websockets
