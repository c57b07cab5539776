"""Files that PyTorch writes, on a disk that may be full.

Where a write fails, PyTorch's archive writer ends the process: it writes the end of the archive when it is destroyed,
and an error there reaches nobody. So it is given a file whose writes never fail, and the error is raised afterwards.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


class _Kept(io.RawIOBase):
    """Writes to a file until that fails; what comes later is dropped.

    Attributes:
        error: why it failed.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """PyTorch wants it to be."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Nothing: PyTorch goes back to the start when it has written all."""
        return offset

    def write(self, data: Any) -> int:
        """As of a file, without an error."""
        try:
            if self.error is None and not self._file.closed:
                self._file.write(data)
        except OSError as error:
            self.error = error
        return memoryview(data).nbytes


@contextmanager
def torch_file(path: Path) -> Iterator[Any]:
    """A new file for a writer of PyTorch's.

    Raises:
        OSError: at the end, where not all could be written.
    """
    with path.open("wb") as file:
        kept = _Kept(file)
        yield kept
        if kept.error is not None:
            raise kept.error
