"""Writing rewritten programs to files that load without the model's source, and reading them back."""

from lightint_compile.exporting.formats import check_suffix
from lightint_compile.exporting.loading import Loaded, load
from lightint_compile.exporting.writing import Exported, export

__all__ = ["Exported", "Loaded", "check_suffix", "export", "load"]
