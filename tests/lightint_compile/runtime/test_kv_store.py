"""Keys and values of context frames between chunks: what is kept, for how long, and for whom."""

import copy
import threading

import pytest
import torch
from kept_world import KeptWorld, rotated

import lightint_compile
from lightint_compile.compiled import CompiledGraph
from lightint_compile.passes.ir.decision_points import KeepPoint, RecallPoint
from lightint_compile.passes.ir.decision_policy import Policy
from lightint_compile.path_decisions import decide
from lightint_compile.runtime import content_sums as checksums
from lightint_compile.runtime import device_to_host as transfer
from lightint_compile.runtime.content_check import Check, Watch
from lightint_compile.runtime.kept_frames import KeptFrames, kept_along
from lightint_compile.runtime.kv_store import Keeping, fingerprints, frame_sums

PASSES = "dead-tail,adaptive-context,{}outline-regions"
CHUNKS = 6


class Rollout:
    """Chunks of a made-up video along a turning camera, through one compiled world."""

    def __init__(self, age=3, *, delegate="eager", dtype=torch.float64):
        torch.manual_seed(0)
        self.world, self.dtype = KeptWorld().to(dtype).eval().requires_grad_(False), dtype
        keeping = "" if age is None else f"context-reuse{{age={age}}},"
        options = {"passes": PASSES.format(keeping), "delegate": delegate, "strict": True}
        self.compiled = torch.compile(self.world, backend="lightint", fullgraph=True, options=options)
        self.begin()
        angles = torch.linspace(0.0, 2.0, 4 * CHUNKS + 4, dtype=dtype)
        self.cameras = torch.eye(4, dtype=dtype).repeat(1, len(angles), 1, 1)
        self.cameras[0, :, 0, 0] = self.cameras[0, :, 2, 2] = angles.cos()
        self.cameras[0, :, 0, 2], self.cameras[0, :, 2, 0] = -angles.sin(), angles.sin()

    def begin(self):
        generator = torch.Generator().manual_seed(1)
        self.video = torch.randn(1, 4, 4 * CHUNKS + 4, 2, 3, generator=generator, dtype=self.dtype)

    def inputs(self, chunk):
        now = 4 * chunk
        noise, history = self.video[:, :, now : now + 4], self.video[:, :, :now].clone()
        cameras = self.cameras[:, : now + 4].clone()
        torch._dynamo.mark_dynamic(history, 2)
        torch._dynamo.mark_dynamic(cameras, 1)
        return noise, history, cameras

    def chunk(self, chunk):
        with torch.no_grad():
            return self.compiled(*self.inputs(chunk))

    def decision(self):
        return lightint_compile.decisions(self.compiled)[-1]

    def run(self):
        return [self.chunk(chunk) for chunk in range(1, CHUNKS + 1)]

    def kept(self):
        """Kept frames of each chunk of a whole rollout."""
        self.run()
        return [decision.kept_frames for decision in lightint_compile.decisions(self.compiled)[1:]]


@pytest.fixture(autouse=True)
def _forgotten(request):
    yield
    if "lasting" not in request.fixturenames:
        torch._dynamo.reset()


@pytest.fixture(scope="module")
def _once():
    rollout = Rollout(age=100)
    rollout.chunk(1)
    return rollout


@pytest.fixture
def lasting(_once):
    """A rollout that keeps frames for good: compiled once, with weights, video and memory as new."""
    torch.manual_seed(0)
    for parameter, new in zip(_once.world.parameters(), KeptWorld().to(_once.dtype).parameters(), strict=True):
        parameter.data = new.data
    _once.begin()
    lightint_compile.reset(_once.compiled)
    return _once


def content(*tensors):
    watch = Watch(range(len(tensors)))
    return Check(tensors, watch).content(watch.positions)


def prints_of(frames, axes):
    return fingerprints(frame_sums(frames, axes), frames, axes)


def by_hand(world, inputs, decision, memory):
    """A chunk with the rows of kept frames from ``memory``: (layer, frame) to what comes before any position."""
    noise, history, extrinsics = inputs
    frames, kept = list(decision.context_frames), decision.kept_frames
    places = torch.arange(len(frames)).to(history.dtype)
    cameras = world.pose(extrinsics[:, frames].flatten(2)).repeat_interleave(6, 1)
    tokens, now = world.tokens(history[:, :, frames[kept:]]), world.tokens(noise)
    for number, layer in enumerate(world.layers):
        query, key, value = layer.qkv(tokens)
        for place, frame in enumerate(frames[kept:]):
            memory[number, frame] = [rows[:, 6 * place : 6 * place + 6] for rows in (key, value)]
        key, value = (torch.cat([memory[number, frame][side] for frame in frames], 1) for side in (0, 1))
        key = rotated(key, places) + cameras
        mine, later = layer.qkv(now), len(frames) + torch.arange(4).to(now.dtype)
        keys, values = torch.cat([key, rotated(mine[1], later)], 1), torch.cat([value, mine[2]], 1)
        now = now + layer.attend(rotated(mine[0], later), keys, values)
        tokens = tokens + layer.attend(rotated(query, places[kept:]), key, value)
    return now


def test_a_rollout_gives_what_the_same_frames_kept_by_hand_give() -> None:
    rollout, memory, kept = Rollout(), {}, []
    for chunk in range(1, CHUNKS + 1):
        found, decision = rollout.chunk(chunk), rollout.decision()
        kept.append(decision.kept_frames)
        expected = by_hand(rollout.world, rollout.inputs(chunk), decision, memory)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert kept[0] == 0 and sum(count > 0 for count in kept) >= 4, kept


def test_at_age_0_nothing_changes_and_frames_always_kept_would_change_something() -> None:
    plain, never, always = (torch.stack(Rollout(age).run()) for age in (None, 0, 100))
    assert torch.equal(plain, never)
    assert not torch.allclose(plain, always, rtol=1e-12, atol=0), "what is kept makes no difference: the test is void"
    assert (plain - always).norm() < 0.1 * plain.norm()


def test_frames_are_made_anew_when_they_are_too_old() -> None:
    kept = Rollout(age=1).kept()
    assert kept[0] == 0 and kept[1] > 0 and kept[2] == 0, kept


@pytest.mark.slow
def test_through_inductor_with_and_without_kept_frames() -> None:
    eager, compiled = (torch.stack(Rollout(delegate=d, dtype=torch.float32).run()) for d in ("eager", "inductor"))
    torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


def test_no_recompile_whatever_is_kept() -> None:
    rollout = Rollout()
    rollout.chunk(1)
    rollout.chunk(2)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for chunk in range(3, CHUNKS + 1):
            rollout.chunk(chunk)


def test_bfloat16_is_as_close_to_double_as_without_keeping() -> None:
    exact = torch.stack(Rollout(age=0).run())
    distances = [(torch.stack(Rollout(age, dtype=torch.bfloat16).run()).double() - exact).norm() for age in (0, 2)]
    assert distances[1] <= 2 * distances[0]


# --- guards and state ------------------------------------------------------------------------------------------------


def test_a_frame_that_was_edited_is_made_anew_with_all_behind_it(lasting) -> None:
    rollout = lasting
    for chunk in (1, 2, 3):
        rollout.chunk(chunk)
    assert rollout.decision().kept_frames >= 4
    rollout.video[:, :, 2] = rollout.video[:, :, 2].flip(-1)
    rollout.chunk(4)
    assert rollout.decision().kept_frames == 2


@pytest.mark.parametrize("way", ["in place", "data", "numpy", "another tensor"])
def test_a_write_to_a_weight_is_seen(way, lasting) -> None:
    rollout = lasting
    for chunk in (1, 2):
        rollout.chunk(chunk)
    assert rollout.decision().kept_frames
    weight = rollout.world.layers[0].key.weight
    with torch.no_grad():
        if way == "in place":
            weight.mul_(2)
        elif way == "data":
            weight.data *= 2
        elif way == "numpy":
            weight.numpy()[...] *= 2
        else:
            weight.data = weight * 2
    found = rollout.chunk(3)
    assert rollout.decision().kept_frames == 0
    expected = by_hand(rollout.world, rollout.inputs(3), rollout.decision(), {})
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_frames_and_weights_are_told_in_the_one_transfer_of_a_chunk(monkeypatch, lasting) -> None:
    monkeypatch.setattr(checksums, "_is_read_at_once", lambda device: False)
    reads, read = [], transfer.to_host
    monkeypatch.setattr(transfer, "to_host", lambda values: reads.append(values.numel()) or read(values))
    rollout, kept = lasting, []
    for chunk in (1, 2, 3, 4):
        if chunk == 4:
            rollout.world.layers[0].key.weight.data += 1
        rollout.chunk(chunk)
        kept.append(rollout.decision().kept_frames)
    assert len(reads) == 4 and kept[0] == 0 and kept[2] >= 4 and kept[3] == 0


def test_weights_that_were_moved_without_a_change_keep_what_they_have(lasting) -> None:
    rollout = lasting
    rollout.chunk(1), rollout.chunk(2)
    for parameter in rollout.world.parameters():
        parameter.data = parameter.data.clone()
    rollout.chunk(3)
    assert rollout.decision().kept_frames >= 4


def test_another_trajectory_begins_anew_and_reset_forgets(lasting) -> None:
    rollout = lasting
    rollout.chunk(1), rollout.chunk(2)
    rollout.video = rollout.video.flip(2)
    rollout.chunk(3)
    assert rollout.decision().kept_frames == 0
    rollout.chunk(4)
    assert rollout.decision().kept_frames > 0
    lightint_compile.reset(rollout.compiled)
    rollout.chunk(5)
    assert rollout.decision().kept_frames == 0


def test_a_chunk_that_fails_leaves_nothing_half_made(monkeypatch, lasting) -> None:
    rollout = lasting
    rollout.chunk(1), rollout.chunk(2)
    driver = CompiledGraph.of(rollout.compiled)[0].driver
    last = max(name for name in driver.decisions.points if name.startswith("keep_"))
    working = getattr(driver._self, last)

    def failing(*args):
        raise RuntimeError("out of memory")

    setattr(driver._self, last, failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        rollout.chunk(3)
    setattr(driver._self, last, working)
    found = rollout.chunk(3)
    again = Rollout(age=100)
    expected = [again.chunk(chunk) for chunk in (1, 2, 3)][-1]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_copy_starts_with_nothing_kept(lasting) -> None:
    rollout = lasting
    rollout.chunk(1), rollout.chunk(2)
    driver = CompiledGraph.of(rollout.compiled)[0].driver
    twin = copy.deepcopy(driver)
    assert driver.decisions._keeping._stores and not twin.decisions._keeping._stores


def test_where_an_input_cannot_be_read_nothing_is_kept() -> None:
    sparse = torch.zeros(2).to_sparse()
    use = Keeping(Policy(memory=12, age=3)).begin(1, range(8), [(0,)] * 8, content(torch.zeros(2), sparse))
    assert use.share.kept == () and len(use.share.fresh) == 8 and use._store is None


def test_two_threads_do_not_share_a_chunk() -> None:
    keeping, weight, prints = Keeping(Policy(memory=12, age=3)), content(torch.zeros(2)), [(0,)] * 8
    mine, other = keeping.begin(1, range(8), prints, weight), []
    thread = threading.Thread(target=lambda: other.append(keeping.begin(1, range(8), prints, weight)))
    thread.start(), thread.join()
    assert mine._store is not None and other[0]._store is None


def test_slots_hold_their_frames_however_the_context_changes() -> None:
    keeping, weight = Keeping(Policy(memory=12, age=9)), content(torch.zeros(1))
    keep, recall = KeepPoint(0, 1, 1, 6), RecallPoint(0, (1, None, 2, 3, 5), 12, "float32", "cpu")
    prints = [(frame,) for frame in range(24)]
    made = torch.randn(24, 2, 3, 5)
    contexts = [[*range(8)], [0, 1, 2, 3, *range(4, 12)], [0, 1, 2, 3, *range(8, 16)], [*range(8, 20)], [*range(4, 16)]]
    seen = []
    for chunk, context in enumerate(contexts, 1):
        use = keeping.begin(chunk, context, prints, weight)
        count = len(use.slots)
        kept = use.recall(recall).index_select(1, torch.tensor(use.slots, dtype=torch.int64))
        assert torch.equal(kept, made[context[:count]][None]), context
        use.keep(keep, made[context[count:]].flatten(0, 2)[None])
        seen.append(count)
    assert seen == [0, 8, 8, 8, 0], "4 to 7 made room, and are behind nothing that is kept"


def test_what_is_kept_of_values_that_need_gradients_needs_none() -> None:
    keeping, weight = Keeping(Policy(memory=12, age=9)), content(torch.zeros(1))
    use = keeping.begin(1, range(8), [(0,)] * 8, weight)
    pool = use.recall(RecallPoint(0, (1, None, 6, 2), 12, "float32", "cpu"))
    use.keep(KeepPoint(0, 1, 1, 6), torch.randn(1, 48, 2, requires_grad=True))
    assert use.is_done and not pool.requires_grad


def test_a_chunk_that_keeps_nothing_recalls_slots_of_nobody() -> None:
    keeping = Keeping(Policy(memory=12, age=0))
    use = keeping.begin(1, range(8), [(0,)] * 8, content(torch.zeros(1)))
    recalled, other = (use.recall(RecallPoint(site, (-1, None, 5), 12, "bfloat16", "cpu"), 2) for site in (0, 1))
    assert other is recalled, "memory is not filled with what nobody reads"
    assert recalled.shape == (2, 12, 5) and recalled.dtype is torch.bfloat16 and use.slots == ()


def test_prompts_have_stores_of_their_own_and_old_ones_make_room() -> None:
    keeping, prompts, prints = Keeping(Policy(memory=12, age=3)), [torch.full((1,), n) for n in range(3)], [(0,)] * 8
    stores = [keeping.begin(1, range(8), prints, content(prompt))._store for prompt in prompts]
    assert len(set(map(id, stores))) == 3 and keeping._stores == stores[1:]
    again = keeping.begin(2, range(8), prints, content(prompts[1].clone()))._store
    assert again is stores[1], "the same prompt in another place"
    prompts[2].data.add_(1)
    anew = keeping.begin(3, range(8), prints, content(prompts[2]))._store
    assert anew not in stores and keeping._stores == [stores[1], anew], "what was made before a write is still held"


# --- bookkeeping -----------------------------------------------------------------------------------------------------


def shared(frames, chunk, context, prints=None):
    share = frames.share(chunk, context, {frame: (prints or {}).get(frame, (1,)) for frame in context})
    frames.commit(share)
    return len(share.kept)


def test_kept_is_a_beginning_and_the_newest_clip_is_always_fresh() -> None:
    frames = KeptFrames(20, 10)
    assert shared(frames, 1, range(8)) == 0
    assert shared(frames, 1, range(8)) == 4, "the same chunk asked again"
    assert shared(frames, 2, [0, 1, 2, 3, 8, 9, 10, 11]) == 4
    assert shared(frames, 3, [0, 1, 2, 3, 12, 13, 14, 15, 4, 5, 6, 7]) == 4, "what is behind a missing frame is fresh"


def test_slots_of_frames_out_of_use_are_taken_first() -> None:
    frames = KeptFrames(12, 10)
    for chunk, context in enumerate(([*range(8)], [0, 1, 2, 3, *range(8, 12)], [0, 1, 2, 3, *range(12, 16)])):
        shared(frames, chunk, context)
    assert sorted(frames._frames) == [0, 1, 2, 3, *range(8, 16)]
    slots = [kept.slot for kept in frames._frames.values()]
    assert sorted(slots) == list(range(12))


def test_more_slots_keep_clips_that_come_back() -> None:
    decisions = decide("left-31,right-32", 64, "all", 20)
    fresh = {
        capacity: sum(len(d.context_frames) - d.kept_frames for d in kept_along(decisions, 16, capacity))
        for capacity in (20, 64)
    }
    assert sum(len(d.context_frames) for d in decisions) == 148
    assert fresh == {20: 76, 64: 60}, "60 is every clip once, as the newest"


def test_drift_halves_how_long_values_are_kept_and_calm_restores_it() -> None:
    frames = KeptFrames(12, 4)
    frames.drifted(0.5, 0.25)
    assert frames.limit == 2
    frames.drifted(float("nan"), 0.25)
    frames.drifted(0.5, 0.25)
    assert frames.limit == 0
    for expected in (1, 2, 4, 4):
        frames.drifted(0.1, 0.25)
        assert frames.limit == expected
    frames.drifted(0.2, 0.25)
    assert frames.limit == 4, "between half of the bound and the bound nothing changes"


def test_fingerprints_tell_any_change_of_a_frame_and_do_not_depend_on_the_history_behind() -> None:
    video, actions = torch.randn(1, 4, 12, 6, 8), torch.zeros(1, 16, 3)
    longer = prints_of([video, actions], (2, 1))
    assert len(longer) == 12 and len(set(longer)) == 12
    assert prints_of([video[:, :, :8], actions], (2, 1)) == longer[:8]
    assert not set(prints_of([video.flip(-1), actions], (2, 1))) & set(longer)
    edited = video.clone()
    edited[0, 3, 5, 2, 2] = edited[0, 3, 5, 2, 2].nextafter(torch.tensor(9.0))
    changed = [a != b for a, b in zip(prints_of([edited, actions], (2, 1)), longer, strict=True)]
    assert changed == [frame == 5 for frame in range(12)], "the last bit of one number"
    actions[0, 7, 1] = 1e-30
    assert prints_of([video, actions], (2, 1))[7] != longer[7]


def test_fingerprints_are_told_of_whatever_holds_frames() -> None:
    half, whole = torch.randn(2, 5, 3, 4).to(torch.bfloat16), torch.arange(7).repeat(2, 1)
    found = prints_of([half.transpose(1, 2), whole], (2, 1))
    assert len(found) == 5 and len(set(found)) == 5
    assert prints_of([half.transpose(1, 2).float(), whole], (2, 1)) != found


def test_drift_is_measured_when_values_are_made_anew() -> None:
    rollout = Rollout(age=1)
    for chunk in (1, 2, 3):
        rollout.chunk(chunk)
    (store,) = CompiledGraph.of(rollout.compiled)[0].driver.decisions._keeping._stores
    assert store.drift is not None and 0 < float(store.drift) < 10
    rollout.chunk(4)
    assert store.drift is None or rollout.decision().kept_frames == 0
