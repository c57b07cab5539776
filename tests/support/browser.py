"""A headless Chromium for tests of pages; tests skip with a reason where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None
try:
    from axe_playwright_python.sync_playwright import Axe
except ImportError:
    Axe = None

NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Seen:
    """What a page said and asked for while it was open."""

    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def watch(self, page: Any) -> None:
        page.on("console", lambda message: self.problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))


def chromium() -> str:
    """Where the browser of this machine is."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium on this machine")
    return found


@contextmanager
def browser() -> Iterator[Any]:
    """The browser, started."""
    executable = chromium()
    if sync_playwright is None:
        pytest.skip("playwright is not installed")
    with sync_playwright() as started:
        running = started.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield running
        running.close()


@contextmanager
def opened(running: Any, path: Path | str, **context: Any) -> Iterator[tuple[Any, Seen]]:
    """A page of a file or an address, and what it said."""
    seen = Seen()
    context = running.new_context(**{"viewport": {"width": 1400, "height": 1000}, **context})
    page = context.new_page()
    seen.watch(page)
    page.goto(path if isinstance(path, str) else path.as_uri())
    yield page, seen
    context.close()


def violations(page: Any) -> list[tuple[str, list[str]]]:
    """What axe-core finds wrong with a page for people who cannot see or point."""
    if Axe is None:
        pytest.skip("axe-playwright-python is not installed")
    found = Axe().run(page).response["violations"]
    return [(each["id"], [node["html"] for node in each["nodes"]][:3]) for each in found]
