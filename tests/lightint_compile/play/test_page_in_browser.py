"""The page in a real browser: keys move the camera, acceleration is switched, and nothing goes wrong on the way."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import browser
import pytest
import torch

from lightint_compile.models.registry import TRUE, world_model
from lightint_compile.play.opening import Played

pytest.importorskip("uvicorn", reason="the extra `play` is not installed")
pytest.importorskip("starlette", reason="the extra `play` is not installed")
import uvicorn

from lightint_compile.play.app import make_app

pytestmark = pytest.mark.filterwarnings("ignore:.*no trained weights")
SMALL = TRUE.replace("base", "tiny")
PLACES, SHOWN = "map.places", "Number(document.getElementById('picture').dataset.shown || 0)"


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    with browser.browser() as started:
        yield started


@pytest.fixture(scope="module")
def address(running: Any) -> Iterator[str]:
    config = dataclasses.replace(world_model(SMALL).config, steps=1, depth=1)  # type: ignore[attr-defined]
    model = dataclasses.replace(world_model(SMALL), config=config)  # type: ignore[type-var]
    module = model.module()
    fast = torch.compile(module, backend="lightint", options={"preset": "context", "delegate": "eager"})
    played = Played(SMALL, model, module, fast, "context", torch.device("cpu"), torch.float32, 0)
    with ThreadPoolExecutor(1) as thread:
        server = uvicorn.Server(uvicorn.Config(make_app(played, thread), port=0, log_level="warning"))
        serving = threading.Thread(target=server.run)
        serving.start()
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        serving.join(30)


def hold(page: Any, key: str, until: str) -> None:
    """A key, held until something is true on the page."""
    page.keyboard.down(key)
    page.wait_for_function(until, timeout=120_000)
    page.keyboard.up(key)


def settled(page: Any) -> list[list[float]]:
    """The places of the walk once no further chunk comes."""
    page.wait_for_function("document.getElementById('status').dataset.kind === 'still'", timeout=120_000)
    return page.evaluate(PLACES)


def test_keys_move_the_camera_and_switching_changes_what_is_decided(running: Any, address: str) -> None:
    with browser.opened(running, address) as (page, seen):
        page.wait_for_function(f"{PLACES}.length === 4")
        start = page.evaluate(PLACES)[-1]
        page.locator("#accelerate").click()
        assert page.locator("#accelerate").get_attribute("aria-pressed") == "false"
        hold(page, "ArrowLeft", f"{PLACES}.length >= 20")
        turned = settled(page)
        assert turned[-1][2] != start[2] and turned[-1][:2] == start[:2], "it turned where it was"
        hold(page, "w", f"{PLACES}.length >= {len(turned) + 4}")
        walked = settled(page)
        assert walked[-1][:2] != start[:2], "it moved"
        said = page.locator("#decision").inner_text()
        assert said == "the model by itself: 16 context frames, every step computed"
        assert page.locator("#context .looked").count() == 16
        page.keyboard.press("Space")
        assert page.locator("#accelerate").inner_text() == "acceleration: on"
        hold(page, "ArrowLeft", f"play.chunk.accelerated && {PLACES}.length > {len(walked)}")
        settled(page)
        said = page.locator("#decision").inner_text()
        assert "fewer" in said and "overlap" in said
        assert page.locator("#context .looked").count() < 16
        assert "accelerated" in page.locator("#time").inner_text()
        page.wait_for_function(f"{SHOWN} === {PLACES}.length", timeout=30_000)
        assert seen.problems == []


def test_a_new_walk_begins_and_the_page_can_be_read_by_everybody(running: Any, address: str) -> None:
    with browser.opened(running, address) as (page, seen):
        page.wait_for_function(f"{PLACES}.length === 4")
        hold(page, "ArrowRight", f"{PLACES}.length >= 8")
        settled(page)
        page.keyboard.press("r")
        page.wait_for_function(f"{PLACES}.length === 4")
        assert browser.violations(page) == [] and seen.problems == []
        with browser.opened(running, address) as (other, _):
            other.wait_for_function(f"{PLACES}.length === 4")
            page.wait_for_function("document.getElementById('status').dataset.kind === 'replaced'")
            assert "another page" in page.locator("#status").inner_text()
        assert seen.problems == []
