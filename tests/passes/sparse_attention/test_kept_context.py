"""Keys and values of earlier frames come in as inputs: they are read as frames, by one program for all lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from differential import largest_difference, rewritten, trace
from kept_context import HEADS, PLANE, TEXT, WORLDS, DictCache, World, noise
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.functional import scaled_dot_product_attention

import lightint_compile
from lightint_compile.errors import OptionError
from lightint_compile.passes.analysis.attention_sites import AttentionSites, SiteKind
from lightint_compile.passes.analysis.roles import Role, Roles
from lightint_compile.passes.ir.remarks import Remark, RemarkKind

SPARSE = {"preset": "sparse", "delegate": "eager", "min_tokens": 0, "tile": [2, 2, 2]}
#: Every tile is kept, but by the operator: what it keeps is decided in a call, by the mass of the scores.
ALL_READ = "sparse-attention{tile=2x2x2,density=1.0,context-density=1.0,coverage=0.999999999,min-tokens=0}"


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()


def built(world: type[World], dtype: torch.dtype = torch.float32) -> World:
    return world().eval().requires_grad_(False).to(dtype)


def of(dtype: torch.dtype, inputs: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(dtype), inputs)


def compiled(module: nn.Module, **options: Any) -> Callable[..., Any]:
    call = torch.compile(module, backend="lightint", options={**SPARSE, **options})

    def run(**inputs: Any) -> Tensor:
        with torch.no_grad():
            return call(**inputs)

    run.call = call  # type: ignore[attr-defined]
    return run


def sites(remarks: Any, kind: RemarkKind = RemarkKind.APPLIED) -> list[Remark]:
    return [remark for remark in remarks if remark.pass_name == "sparse-attention" and remark.kind is kind]


def told(module: nn.Module, inputs: dict[str, Any], **options: Any) -> list[Remark]:
    """All remarks of a dry run."""
    with torch.no_grad():
        report = lightint_compile.explain(module, **inputs, options={**SPARSE, **options})
    return [remark for section in report.sections for remark in section.remarks]


@pytest.mark.parametrize("name", WORLDS)
def test_the_past_is_frames_however_it_is_kept(name: str):
    kept = WORLDS[name]
    program = trace(built(kept.world), kept.inputs(6))
    found = list(program.fact(AttentionSites))
    assert [str(site.key_axis) for site in found] == [kept.keys] * 2
    assert {site.kind for site in found} == {SiteKind.DENOISE} and {str(site.key_grid) for site in found} == {"10x4x4"}
    contexts = program.fact(Roles).paths(Role.CONTEXT)
    assert contexts and not any("txt" in path or path == "text" for path in contexts)


@pytest.mark.parametrize("name", WORLDS)
def test_reading_all_tiles_is_the_attention_that_was_there(name: str):
    kept = WORLDS[name]
    module, inputs = built(kept.world, torch.float64), of(torch.float64, kept.inputs(6))
    program = trace(module, inputs)
    copy, result = rewritten(program, ALL_READ)
    assert len(sites(result.remarks)) == 2
    args = [values_of(module, inputs)[entry.path] for entry in copy.inputs]
    copy.graph_module.recompile()
    with torch.no_grad():
        assert largest_difference([copy.graph_module(*args)[0]], [module(**inputs)]) < 1e-6


def values_of(module: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Weights and tensors by the path that the program gives them."""
    leaves, _ = pytree.tree_flatten_with_path(inputs)
    named = {".".join(str(getattr(key, "key", getattr(key, "idx", ""))) for key in path): leaf for path, leaf in leaves}
    return {**dict(module.named_parameters()), **named}


#: Two of them stand for all where time is short.
LENGTHS = [
    ("dicts", torch.float32),
    ("joined", torch.bfloat16),
    *(pytest.param(name, torch.float32, marks=pytest.mark.slow) for name in WORLDS if name != "dicts"),
]


@pytest.mark.parametrize(("name", "dtype"), LENGTHS, ids=str)
def test_one_program_for_all_lengths_and_for_lengths_that_are_no_frames(name: str, dtype: torch.dtype):
    """The second length makes sizes symbols, and nothing is compiled from then on."""
    kept = WORLDS[name]
    module = built(kept.world, dtype)
    run = compiled(module)
    for frames in (6, 8, 3, 12, 7.5, 9):
        inputs = of(dtype, kept.inputs(frames))
        exact, found = module(**inputs), run(**inputs)
        assert counters["stats"]["unique_graphs"] == (1 if frames == 6 else 2), frames
        difference = largest_difference([found.float()], [exact.float()])
        whole = frames == int(frames)
        assert difference < 0.2 and (difference > 0 or not whole or frames < 4)
        if not whole and dtype is torch.float32:
            assert difference < 1e-5, "tokens that are no frames are read like text"


def test_text_and_past_of_any_length_are_one_program_with_parts_that_are_never_joined():
    module = built(DictCache)
    run = compiled(module, strict=True)
    for frames, text in ((6, 5), (8, 7), (3, 12), (9, 2), (4, 9)):
        inputs = DictCache.inputs(frames, text)
        assert 0 <= largest_difference([run(**inputs)], [module(**inputs)]) < 0.2
        assert counters["stats"]["unique_graphs"] == (1 if frames == 6 else 2), frames
    section = lightint_compile.report(run.call).sections[-1]
    assert sum(remark.count for remark in sites(section.remarks)) == 2
    text = section.graph.print_readable(print_output=False)
    assert "sparse_attention_segments" in text and "aten.cat" not in text, (
        "past, current and text stay the tensors that they are"
    )


def test_a_window_that_slides_is_one_program():
    """Where it starts is a symbol as well."""
    kept = WORLDS["windows"]
    module = built(kept.world)
    run = compiled(module, strict=True)
    for evicted in (PLANE, 2 * PLANE, 3 * PLANE, PLANE + 4):
        inputs = {**kept.inputs(8), "evicted": evicted}
        inputs["angles"] = inputs["angles"][evicted - PLANE :]
        difference = largest_difference([run(**inputs)], [module(**inputs)])
        assert 0 < difference < 0.2 if evicted % PLANE == 0 else difference < 1e-5
        assert counters["stats"]["unique_graphs"] == (1 if evicted == PLANE else 2)
    section = lightint_compile.report(run.call).sections[-1]
    assert sum(remark.count for remark in sites(section.remarks)) == 2


def test_what_is_skipped_is_what_is_skipped_where_the_frames_are_an_axis():
    """The same keys as a tensor with an axis of frames, which was always understood, give the same bits."""

    class Framed(DictCache):
        def forward(self, latent: Tensor, kv_cache: list[dict[str, Tensor]]) -> Tensor:
            flat = [{name: kept.flatten(2, -2) for name, kept in layer.items()} for layer in kv_cache]
            return super().forward(latent, flat)

    module, inputs = built(DictCache), DictCache.inputs(8)
    framed = [
        {name: kept.unflatten(2, (8, 4, 4)) if "vision" in name else kept for name, kept in layer.items()}
        for layer in inputs["kv_cache"]
    ]
    found = compiled(module)(**inputs)
    assert torch.equal(found, compiled(built(Framed))(latent=inputs["latent"], kv_cache=framed))
    assert not torch.equal(found, module(**inputs))


def test_a_cache_that_changes_between_calls_is_read_as_it_is():
    module, inputs = built(DictCache), DictCache.inputs(8)
    run = compiled(module)
    first = run(**inputs)
    for layer in inputs["kv_cache"]:
        layer["k_vision"][:, :, : 2 * PLANE].mul_(3)
        layer["v_vision"].data[:, :, PLANE:] += 1
    again = run(**inputs)
    assert not torch.equal(first, again) and torch.equal(again, compiled(built(DictCache))(**inputs))
    assert largest_difference([again], [module(**inputs)]) < 0.2


def test_steps_of_one_module_pool_what_was_kept_once():
    """The second step patchifies what the first one made; both read the same keys, also where these are no frames."""

    class Chunk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.world = DictCache()

        def forward(self, latent: Tensor, kv_cache: list[dict[str, Tensor]]) -> Tensor:
            for step in (0.5, 0.3):
                latent = latent - step * self.world(latent, kv_cache)
            return latent

    module = Chunk().eval().requires_grad_(False)
    run = compiled(module, strict=True)
    for frames in (6, 8, 3, 7.5, 0.5, 9):
        inputs = DictCache.inputs(frames)
        difference = largest_difference([run(**inputs)], [module(**inputs)])
        assert difference < (0.2 if frames == int(frames) else 1e-5)
    assert counters["stats"]["unique_graphs"] == 2
    for section in lightint_compile.report(run.call).sections:
        readers = [remark.args["context_pool_readers"] for remark in sites(section.remarks)]
        assert readers == [2] * len(readers) and sum(remark.count for remark in sites(section.remarks)) == 4


def test_nothing_changes_under_exact():
    module, inputs = built(DictCache), DictCache.inputs(8)
    run = torch.compile(module, backend="lightint", options={"preset": "exact", "delegate": "eager"})
    with torch.no_grad():
        assert torch.equal(run(**inputs), module(**inputs))
    assert not sites(lightint_compile.report(run).sections[0].remarks)


def test_the_remark_says_which_inputs_hold_how_many_frames():
    for remark in sites(told(built(DictCache), DictCache.inputs(6))):
        assert "and to 5 text tokens" in remark.message
        assert "kv_cache.*.k_vision holds 6 kept frames of 4x4, in front of the current ones" in remark.message
        assert remark.args["key_grid"] == "10x4x4" and remark.flops_after < remark.flops_before


def test_layers_with_symbols_of_their_own_are_one_row():
    run = compiled(built(DictCache))
    for frames in (6, 8):
        run(**DictCache.inputs(frames))
    last = lightint_compile.report(run.call).sections[-1]
    (row,) = {(remark.message, remark.args["key_grid"]) for remark in sites(last.remarks)}
    assert "holds n kept frames of 4x4, 8 when compiled" in row[0] and row[1] == "(n + 4)x4x4"


# --- what is no past, and why -----------------------------------------------------------------------------------------


class Twin(World):
    """One layer that attends to ``[front | current]``, written so that the front is no past."""

    def forward(self, latent: Tensor, front: Tensor, text: Tensor) -> Tensor:
        def attend(layer: int, x: Tensor) -> Tensor:
            query, key, value = (each.transpose(1, 2) for each in self.projected(layer, x))
            keys, values = self.front(layer, front, text)
            key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
            return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

        return self.run(latent, attend)

    def front(self, layer: int, front: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    @staticmethod
    def inputs(tokens: int = 6 * PLANE) -> dict[str, Any]:
        return {"latent": noise(1, 4, 4, 8, 8), "front": noise(1, HEADS, tokens, 16), "text": noise(1, tokens, 32)}


class Whole(Twin):
    def front(self, layer: int, front: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return front, front.sin()


class Rotated(Twin):
    """The past gets positions on its own, from a table that is the first factor of every product."""

    def front(self, layer: int, front: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        table = text[0, :, :16]
        return table.cos() * front + table.sin() * front.flip(-1), front.sin()


class Projected(Twin):
    """As many text tokens as six frames have."""

    def front(self, layer: int, front: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        _, key, value = (each.transpose(1, 2) for each in self.projected(layer, text))
        return key, value


class Padded(Twin):
    """Zeros in front of the frames, up to a fixed length."""

    def front(self, layer: int, front: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        empty = front.new_zeros(1, HEADS, 6 * PLANE, 16)
        return empty, empty


class ValuesMade(Twin):
    """The values in place of the past are computed from its text."""

    def front(self, layer: int, front: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return front, self.projected(layer, text)[2].transpose(1, 2)


class Registers(Twin):
    """Learnt keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.learnt = nn.Parameter(noise(1, HEADS, 6 * PLANE, 16))

    def front(self, layer: int, front: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.learnt, self.learnt


class NamedText(World):
    """Kept keys of a text of six frames' length: their name says so."""

    def forward(self, latent: Tensor, prompt_cache: list[Tensor]) -> Tensor:
        def attend(layer: int, x: Tensor) -> Tensor:
            query, key, value = (each.transpose(1, 2) for each in self.projected(layer, x))
            key, value = torch.cat([prompt_cache[0], key], 2), torch.cat([prompt_cache[1], value], 2)
            return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

        return self.run(latent, attend)

    @staticmethod
    def inputs() -> dict[str, Any]:
        return {
            "latent": noise(1, 4, 4, 8, 8),
            "prompt_cache": [noise(1, HEADS, 6 * PLANE, 16, seed=i) for i in (1, 2)],
        }


def key_axes(module: nn.Module, inputs: dict[str, Any], **stated: Any) -> set[str]:
    program = trace(module, inputs)
    for name, value in stated.items():
        getattr(program, name).update(value)
    return {str(site.key_axis) for site in program.fact(AttentionSites)}


@pytest.mark.parametrize("twin", [Projected, Padded, ValuesMade, Registers])
def test_what_only_looks_like_a_past_is_text(twin: type[Twin]):
    assert key_axes(built(Whole), Whole.inputs()) == {"6x4x4 | 4x4x4"}, "the twin of all of them"
    assert key_axes(built(twin), twin.inputs()) == {"96 | 4x4x4"}


def test_a_table_of_positions_is_not_taken_for_what_it_is_applied_to():
    program = trace(built(Rotated), Rotated.inputs())
    assert {str(site.key_axis) for site in program.fact(AttentionSites)} == {"6x4x4 | 4x4x4"}
    assert program.fact(Roles).paths(Role.CONTEXT) == ["front"]


def test_a_name_that_says_text_is_believed_and_a_stated_role_before_it():
    module, inputs = built(NamedText), NamedText.inputs()
    assert key_axes(module, inputs) == {"96 | 4x4x4"}
    assert key_axes(module, inputs, roles={"prompt_cache.*": "context"}) == {"6x4x4 | 4x4x4"}


def test_a_length_that_is_no_multiple_of_a_frame_is_text():
    assert key_axes(built(Whole), Whole.inputs(6 * PLANE + 3)) == {"99 | 4x4x4"}
    assert key_axes(built(Whole), Whole.inputs(PLANE // 2)) == {"8 | 4x4x4"}


def test_text_kept_beside_the_past_is_told_apart_by_its_form():
    """A text of exactly two frames' length, for both guidances in one."""
    inputs = DictCache.inputs(6)
    for layer in inputs["kv_cache"]:
        layer.update(k_txt=noise(1, HEADS, 2 * PLANE, 16), v_txt=noise(1, HEADS, 2 * PLANE, 16))
    unnamed = [{name.replace("txt", "t"): kept for name, kept in layer.items()} for layer in inputs["kv_cache"]]

    class Unnamed(DictCache):
        def forward(self, latent: Tensor, kv_cache: list[dict[str, Tensor]]) -> Tensor:
            return super().forward(latent, [{n.replace("_t", "_txt"): k for n, k in d.items()} for d in kv_cache])

    assert key_axes(built(Unnamed), {**inputs, "kv_cache": unnamed}) == {"32 | 6x4x4 | 4x4x4"}


def test_several_windows_of_a_past_are_all_frames():
    """A sink, and a window of later frames, of two inputs alike."""

    class Sink(World):
        def forward(self, latent: Tensor, sink: Tensor, window: Tensor) -> Tensor:
            def attend(layer: int, x: Tensor) -> Tensor:
                query, key, value = (each.transpose(1, 2) for each in self.projected(layer, x))
                key = torch.cat([sink[:, :, :, :16], window[:, :, :, :16], key], 2)
                value = torch.cat([sink[:, :, :, 16:], window[:, :, :, 16:], value], 2)
                return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

            return self.run(latent, attend)

    sizes = {"sink": 2 * PLANE, "window": 5 * PLANE}
    inputs = {"latent": noise(1, 4, 4, 8, 8), **{name: noise(1, HEADS, size, 32) for name, size in sizes.items()}}
    assert key_axes(built(Sink), inputs) == {"2x4x4 | 5x4x4 | 4x4x4"}


# --- what users state -------------------------------------------------------------------------------------------------


def test_a_role_of_text_keeps_a_past_text():
    module, inputs = built(Whole), Whole.inputs()
    assert key_axes(module, inputs, roles={"front": "text"}) == {"96 | 4x4x4"}
    patterns = {"*": "context", "fr*": "text"}
    assert key_axes(module, inputs, roles=patterns) == {"96 | 4x4x4"}, "the longer pattern goes first"
    assert key_axes(module, inputs, roles={**patterns, "front": "context"}) == {"6x4x4 | 4x4x4"}, "and a path before it"


def test_a_grid_that_is_stated_tells_text_and_frames_of_one_tensor_apart():
    module, inputs = built(Whole), Whole.inputs(TEXT + 6 * PLANE)
    assert key_axes(module, inputs) == {"101 | 4x4x4"}
    assert key_axes(module, inputs, grids={"front": (None, 4, 4)}) == {"5 | 6x4x4 | 4x4x4"}
    assert key_axes(module, inputs, grids={"front": (2, 4, 4)}) == {"69 | 2x4x4 | 4x4x4"}
    (remark,) = sites(told(module, inputs, grids={"front": [None, 4, 4]}))
    assert (
        "holds 5 tokens of text and 6 kept frames of 4x4, in front of the current ones, as is stated" in remark.message
    )
    found = compiled(module, grids={"front": [None, 4, 4]})(**inputs)
    assert 0 < largest_difference([found], [module(**inputs)]) < 0.2


def test_what_is_projected_here_counts_where_it_is_stated():
    """Hidden states of earlier frames, whose keys are computed in each step."""
    assert key_axes(built(Projected), Projected.inputs(), roles={"text": "context"}) == {"6x4x4 | 4x4x4"}


REFUSED = [
    (Whole, Whole.inputs(99), {"roles": {"front": "context"}}, "its 99 tokens are no whole frames of 4x4 tokens"),
    (Whole, Whole.inputs(), {"grids": {"front": [9, 4, 4]}}, "its 96 tokens are no whole frames"),
    (ValuesMade, ValuesMade.inputs(), {"roles": {"fr*": "context"}}, "values in its place are projected from text"),
]


@pytest.mark.parametrize(("world", "inputs", "stated", "why"), REFUSED)
def test_what_is_stated_and_cannot_be_is_told(world, inputs, stated, why):
    missed = [remark for remark in told(built(world), inputs, **stated) if remark.rule == "stated-frames"]
    assert len(missed) == 1 and why in missed[0].message and "grids" in missed[0].hint
    (entry,) = next(iter(stated.values()))
    assert missed[0].message.startswith(f"{entry} is stated to hold frames")


def stated_misses(module: nn.Module, inputs: dict[str, Any], **options: Any) -> list[tuple[str, str]]:
    remarks = told(module, inputs, **options)
    return [(r.rule, r.message) for r in remarks if r.pass_name in ("roles", "grids") and r.kind is RemarkKind.MISSED]


def test_stated_context_and_grids_that_are_used_are_not_told_of():
    inputs = DictCache.inputs(6)
    used = {"roles": {"kv_cache.*": "context"}, "grids": {"kv_cache.*.k_vision": [None, 4, 4]}}
    assert stated_misses(built(DictCache), inputs, **used) == []
    assert not [remark for remark in told(built(DictCache), inputs, **used) if remark.rule == "stated-frames"]
    ((rule, message),) = stated_misses(built(DictCache), inputs, grids={"latent": [4, 4, 4]})
    assert rule == "nowhere" and "latent is stated to hold frames, and no attention reads it" in message
    report = lightint_compile.explain(built(DictCache), **inputs, options={"preset": "exact", **used})
    roles, grids = ((r.rule, r.message) for r in report.sections[0].remarks if r.rule == "unread")
    assert roles[0] == grids[0] == "unread" and all(
        "no pass of this pipeline" in message for _, message in (roles, grids)
    )


@pytest.mark.parametrize(
    ("option", "value"), [("roles", {"kv_cache.*.k_visoin": "context"}), ("grids", {"kv_cach": [None, 4, 4]})]
)
def test_names_that_no_input_fits_are_errors(option: str, value: dict[str, Any]):
    with pytest.raises(OptionError, match="there is no input") as caught:
        told(built(DictCache), DictCache.inputs(6), **{option: value})
    assert "did you mean 'kv_cache" in caught.value.fix


BAD = [
    {"front": [None, 4]},
    {"front": [0, 4, 4]},
    {"front": [None, 0, 4]},
    {"front": [None, 4, 2.5]},
    {"front": 4},
    "x",
]


@pytest.mark.parametrize("value", BAD, ids=str)
def test_a_grid_is_three_sizes(value: Any):
    with pytest.raises(OptionError, match="cannot be taken"):
        lightint_compile.LightintOptions(grids=value)


def test_grids_are_kept_as_plain_data():
    options = lightint_compile.LightintOptions(grids={"b": (2, 4, 4), "a": [None, 4, 4]})
    assert options.to_dict()["grids"] == {"a": [None, 4, 4], "b": [2, 4, 4]}
    assert lightint_compile.LightintOptions.from_mapping(options.to_dict()) == options and hash(options)
