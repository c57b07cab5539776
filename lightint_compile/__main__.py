"""``python -m lightint_compile`` is the command line."""

from lightint_compile.cli import main

main()
