"""The command line ``lightint``. Heavy modules load inside the command that needs them, so ``--help`` is quick."""

from lightint_compile.cli.app import app, main

__all__ = ["app", "main"]
