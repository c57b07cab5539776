"""The packages of the extra `play`."""

from __future__ import annotations

from lightint_compile.errors import InputError


def check_packages() -> None:
    """Raise InputError, which names the extra, where one of its packages is not installed."""
    try:
        import PIL
        import starlette
        import uvicorn
        import websockets
    except ImportError as error:
        fix = "pip install 'lightint[play]'"
        raise InputError("the page cannot be served", where="lightint play", why=str(error), fix=fix) from error
    del PIL, starlette, uvicorn, websockets
