"""The file formats there are, by suffix or by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lightint_compile.errors import ExportError


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: as the argument ``format`` of ``export`` takes it.
        suffix: of its files.
        text: what is in a file.
        loads: whether :func:`lightint_compile.load` reads it.
    """

    name: str
    suffix: str
    text: str
    loads: bool = True

    def __str__(self) -> str:
        return f"{self.suffix} ({self.text})"


PT2 = Format("pt2", ".pt2", "torch.export archive: graph, weights and report in one file")
AOTI = Format("aoti", ".aoti.pt2", "AOTInductor package: compiled code and weights, for Python and C++")
ONNX = Format("onnx", ".onnx", "ONNX model: a graph for onnxruntime and other importers", loads=False)

FORMATS = (AOTI, PT2, ONNX)
"""A longer suffix stands in front of its end."""


def format_of(path: str | Path, name: str | None = None) -> Format:
    """The format called ``name``; without a name that of the path's suffix.

    Raises:
        ExportError: there is none; it lists the known.
    """
    if name is not None:
        return _called(name)
    return _of_suffix(Path(path), FORMATS)


def loadable(path: str | Path) -> Format:
    """The format of a file that ``load`` is given.

    Raises:
        ExportError: no such file is loaded here.
    """
    path = Path(path)
    if path.name.endswith(ONNX.suffix):
        readers = [each for each in FORMATS if each.loads]
        fix = "onnxruntime.InferenceSession(path) runs it"
        raise ExportError("an ONNX model is not loaded into PyTorch", where=str(path), why=_known(readers), fix=fix)
    return _of_suffix(path, [each for each in FORMATS if each.loads])


def _of_suffix(path: Path, formats: Iterable[Format]) -> Format:
    found = next((each for each in formats if path.name.endswith(each.suffix) and path.name != each.suffix), None)
    if found is None:
        what = f"there is no export format {path.suffix!r}" if path.suffix else "the path has no suffix"
        raise ExportError(what, where=str(path), why=_known(formats), fix=f"write {path.stem or 'model'}.pt2")
    return found


def _called(name: str) -> Format:
    found = next((each for each in FORMATS if each.name == name), None)
    if found is None:
        known = ", ".join(each.name for each in FORMATS)
        raise ExportError(f"there is no export format {name!r}", where="format", why=f"known: {known}")
    return found


def _known(formats: Iterable[Format]) -> str:
    ordered = sorted(formats, key=lambda each: each.name != PT2.name)
    return "known: " + "; ".join(map(str, ordered))
