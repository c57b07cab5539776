"""``python -m lightint_compile.testing`` fuzzes."""

import sys

from lightint_compile.testing.fuzz import main

sys.exit(main())
