"""Writing rewritten programs to files that load without the model's source, and reading them back."""

from lightint_compile.exporting.formats import FORMATS, format_of
from lightint_compile.exporting.loading import Loaded, load
from lightint_compile.exporting.writing import Checked, Exported, export

__all__ = ["FORMATS", "Checked", "Exported", "Loaded", "export", "format_of", "load"]
