"""The pictures of docs/how-to/reports.md: a small world model along a path that turns away and comes back, timed.

``python tests/support/report_pictures.py`` writes them to docs/images; it needs Chromium and playwright. They are kept
with 96 colours, which takes a quarter of the room.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import browser
import torch

import lightint_compile
from lightint_compile.models.registry import world_model

FOLDER = Path(__file__).resolve().parents[2] / "docs/images"
PATH = "w-7,left-8,d-8,right-8"
OPENED = """(() => {
    lightint.toggle('after:step 1');
    lightint.select('after:step 1');
    lightint.drawing.fit();
})()"""


def made(path: Path) -> Path:
    """The page of a rollout that was run twice: to compile, and to time."""
    model = world_model("worldplay:tiny")
    chunk = model.module("cpu", torch.float32)
    compiled = torch.compile(chunk, backend="lightint", options={"preset": "all", "delegate": "eager"})
    scene, trajectory = model.scene(), model.camera_path(PATH)

    def run() -> None:
        list(model.rollout(compiled, scene, trajectory))

    with torch.no_grad():
        run()
        return lightint_compile.report(compiled, run=run).to_html(path)


def take(running: Any, page_file: Path) -> None:
    """Three pictures: the first screen, the graph, and the timeline on a dark screen."""
    with browser.opened(running, page_file, viewport={"width": 1200, "height": 620}) as (page, _):
        page.screenshot(path=FOLDER / "report-first-screen.png")
        page.set_viewport_size({"width": 1100, "height": 1000})
        page.evaluate(OPENED)
        page.wait_for_timeout(300)
        page.locator("#graph").screenshot(path=FOLDER / "report-graph.png")
    with browser.opened(running, page_file, viewport={"width": 1200, "height": 900}, color_scheme="dark") as (page, _):
        page.locator("#timeline tbody tr").nth(4).focus()
        page.locator("#timeline").screenshot(path=FOLDER / "report-timeline.png")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browser.browser() as running:
        take(running, made(Path(folder) / "report.html"))
