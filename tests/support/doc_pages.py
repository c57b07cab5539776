"""Pages of the documentation that are run: their Python blocks in order, and what each must print."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

_BLOCK = re.compile(r"^```(?P<language>\w+)(?P<title> title=)?[^\n]*\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
_NUMBER = re.compile(r"[+-]?\d[\d.,]*(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Block:
    """Python ``code`` that starts at ``line`` of a page, and the text block behind it, if it has one."""

    line: int
    code: str
    output: str | None


def blocks_of(page: Path) -> list[Block]:
    """The Python blocks of a page; a text block with nothing but white space in front of it belongs to one.

    Blocks with a title are files, which are not run.
    """
    text, found = page.read_text(), []
    matches = [match for match in _BLOCK.finditer(text)]
    for match, after in itertools.zip_longest(matches, matches[1:]):
        if match["language"] != "python" or match["title"]:
            continue
        follows = after is not None and after["language"] == "text" and not text[match.end() : after.start()].strip()
        line = text.count("\n", 0, match.start("text")) + 1
        found.append(Block(line, match["text"], after["text"] if follows and after is not None else None))
    return found


def run(page: Path) -> ModuleType:
    """Run the blocks of a page one after the other as one module, and compare what they print.

    Numbers in the output may differ (seconds do, and counts with versions of torch), and ``...`` stands for any text.
    The module stays in ``sys.modules``, where Dynamo looks for the globals of a function.
    """
    module = ModuleType(f"page_{page.stem.replace('-', '_')}")
    sys.modules[module.__name__] = module
    for block in blocks_of(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), vars(module))
        if block.output is not None:
            missing = first_missing(block.output, printed.getvalue())
            assert missing is None, f"{page.name}:{block.line} does not print\n{missing}\nbut\n{printed.getvalue()}"
    return module


def first_missing(wanted: str, printed: str) -> str | None:
    """The first part of ``wanted`` between ``...`` that ``printed`` lacks; ``None`` where all follow in order."""
    rest = _normal(printed)
    for part in filter(_normal, wanted.split("...")):
        _, found, rest = rest.partition(_normal(part))
        if not found:
            return part
    return None


def _normal(text: str) -> str:
    return " ".join(_NUMBER.sub("0", text).split())
