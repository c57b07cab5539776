"""Rollouts of a minute: what a driver holds does not grow, and kept frames stay within the bytes that they may take."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from kept_world import PLANE, WIDTH, KeptWorld, kept_program
from torch import Tensor

import lightint_compile
from lightint_compile.compiled import CompiledGraph
from lightint_compile.passes.context_reuse import ContextReuse
from lightint_compile.passes.ir.remarks import RemarkKind
from lightint_compile.passes.pipeline import Pipeline
from lightint_compile.runtime.kept_frames import KeptFrames

CHUNK, CHUNKS = 4, 90
"""1,440 video frames are 360 latent frames."""

FRAME = 4 * PLANE * WIDTH * 4
"""Bytes of a frame: keys and values of two layers, in float32."""


class Minute:
    """A made-up video along a camera that swings to and fro."""

    def __init__(self, kept_bytes: int | None) -> None:
        torch.manual_seed(0)
        self.world = KeptWorld().eval().requires_grad_(False)
        bound = "" if kept_bytes is None else f",kept-bytes={kept_bytes}"
        passes = f"dead-tail,adaptive-context,context-reuse{{age=4{bound}}},outline-regions"
        options = {"passes": passes, "delegate": "eager", "strict": True}
        self.compiled = torch.compile(self.world, backend="lightint", dynamic=False, options=options)
        self.video = torch.randn(1, 4, CHUNK * (CHUNKS + 1), 2, 3)
        angles = 0.6 * torch.sin(torch.arange(CHUNK * (CHUNKS + 1)) / 20)
        self.cameras = torch.eye(4).repeat(1, len(angles), 1, 1)
        self.cameras[0, :, 0, 0] = self.cameras[0, :, 2, 2] = angles.cos()
        self.cameras[0, :, 0, 2], self.cameras[0, :, 2, 0] = -angles.sin(), angles.sin()

    def inputs(self, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
        now = CHUNK * chunk
        history, cameras = self.video[:, :, :now], self.cameras[:, : now + CHUNK]
        torch._dynamo.mark_dynamic(history, 2)
        torch._dynamo.mark_dynamic(cameras, 1)
        return self.video[:, :, now : now + CHUNK], history, cameras

    def walk(self, first: int, last: int) -> None:
        with torch.no_grad():
            for chunk in range(first, last):
                self.compiled(*self.inputs(chunk))

    def pools(self) -> int:
        """Bytes of kept keys and values."""
        (graph,) = CompiledGraph.of(self.compiled)
        assert graph.driver is not None and graph.driver.decisions.keeping is not None
        stores = graph.driver.decisions.keeping.state()
        return sum(pool.untyped_storage().nbytes() for store in stores for pool in store["pools"].values())


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def alive() -> int:
    """Bytes of all memory that tensors of this process hold."""
    gc.collect()
    found = [each for each in gc.get_objects() if type(each) in (Tensor, torch.nn.Parameter)]
    return sum({each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in found}.values())


@pytest.mark.slow
@pytest.mark.parametrize(("warm", "chunks"), [(8, 20), (30, CHUNKS)])
def test_what_is_held_does_not_grow_with_the_rollout(warm: int, chunks: int) -> None:
    minute = Minute(kept_bytes=8 * FRAME)
    minute.walk(1, warm)
    pools, before = minute.pools(), alive()
    minute.walk(warm, chunks + 1)
    path = torch.finfo(torch.float64).bits // 8 * 16 * CHUNK * (chunks + 1 - warm)
    assert minute.pools() == pools == 8 * FRAME
    assert alive() - before <= path + FRAME, "but for the path of the camera"
    made = lightint_compile.decisions(minute.compiled)
    assert len(made) == chunks + 1 and max(each.kept_frames for each in made) == 8


@pytest.mark.slow
def test_more_bytes_keep_more_frames() -> None:
    kept = {}
    for frames in (4, 12, None):
        minute = Minute(None if frames is None else frames * FRAME)
        minute.walk(1, 12)
        kept[frames] = sum(each.kept_frames for each in lightint_compile.decisions(minute.compiled))
        torch._dynamo.reset()
    assert 0 < kept[4] < kept[12] < kept[None]


def test_too_few_bytes_for_a_frame_keep_nothing_and_say_so() -> None:
    result = Pipeline.parse(f"dead-tail,adaptive-context,context-reuse{{kept-bytes={FRAME - 1}}}").run(
        kept_program(KeptWorld())
    )
    (miss,) = [remark for remark in result.remarks if remark.pass_name == ContextReuse.name]
    assert miss.kind is RemarkKind.MISSED and f"take {FRAME} bytes, and {FRAME - 1}" in miss.message


def test_the_first_frames_of_a_context_have_the_room_and_keep_their_places() -> None:
    frames = KeptFrames(3, 4, newest=1)
    context, prints = (0, 1, 2, 3, 4), dict.fromkeys(range(9), ())
    share = frames.share(0, context, prints)
    assert share.kept == () and share.fresh == (0, 1, 2, None, None)
    frames.commit(share)
    share = frames.share(1, (0, 1, 3, 4, 5), prints)
    assert share.kept == (0, 1) and share.fresh == (2, None, None) and share.older == ()
    frames.commit(share)
    share = frames.share(9, (0, 3, 4), prints)
    assert share.kept == () and share.older == (0, 1), "too old, and looked at for their drift"
    assert share.fresh[:2] == (0, 2) and share.fresh[2] == 1
