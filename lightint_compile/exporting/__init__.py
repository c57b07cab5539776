"""Writing rewritten programs to files that load without the model's source, and reading them back."""

from lightint_compile.exporting.loading import Loaded, load
from lightint_compile.exporting.writing import Exported, check_suffix, export

__all__ = ["Exported", "Loaded", "check_suffix", "export", "load"]
