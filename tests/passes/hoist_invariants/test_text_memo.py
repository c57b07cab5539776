"""Which inputs are text, and what of them is worth being kept."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from lightint_compile import capture
from lightint_compile.passes.hoist_invariants import HoistInvariants
from lightint_compile.passes.hoist_invariants.text_memo import _CHANGING, _TEXT_WORDS, says_text, words_of
from lightint_compile.passes.ir.remarks import RemarkKind

SPELLINGS = (
    lambda words: "_".join(words),
    lambda words: words[0] + "".join(word.capitalize() for word in words[1:]),
    lambda words: "kwargs." + "_".join(words) + "_2",
    lambda words: "_".join(words).upper(),
    lambda words: "".join(word.capitalize() for word in words),
    lambda words: "L_" + "_".join(words) + "0_",
)


@pytest.mark.parametrize("spell", SPELLINGS)
@pytest.mark.parametrize("phrase", _TEXT_WORDS, ids="_".join)
def test_a_name_is_text_by_whole_words_in_any_spelling(phrase, spell) -> None:
    for before, after in itertools.product(((), ("negative",)), ((), ("embeds",), ("mask",))):
        assert says_text(spell((*before, *phrase, *after)))


@pytest.mark.parametrize("spell", SPELLINGS)
@pytest.mark.parametrize("phrase", _TEXT_WORDS, ids="_".join)
def test_parts_of_words_are_no_text(phrase, spell) -> None:
    for piece in ("con{}", "{}ure", "pre{}ed", "{}ual"):
        glued = tuple(piece.format(word) for word in phrase)
        assert not says_text(spell(glued)), glued
    if len(phrase) > 1:
        assert not says_text(spell(phrase[:1])) and not says_text(spell(phrase[::-1]))


@pytest.mark.parametrize("changing", sorted(_CHANGING))
def test_what_changes_all_the_time_is_no_text_whatever_else_its_name_says(changing) -> None:
    for phrase, spell in itertools.product(_TEXT_WORDS, SPELLINGS):
        for words in ((changing, *phrase), (*phrase, changing), (changing + "s", *phrase)):
            assert not says_text(spell(words)), words


def test_words_of_a_name() -> None:
    assert words_of("kwargs.encoderHiddenStates_2") == ["kwarg", "encoder", "hidden", "states"]
    assert words_of("L_byt5Mask_") == ["l", "byt", "mask"]
    assert words_of("TextIDs") == ["text", "id"] or words_of("TextIDs")[0] == "text"


class Branch(nn.Module):
    """What depends on ``name`` alone, beside a video."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.project, self.mix = nn.Linear(32, width), nn.Linear(width, 64)

    def forward(self, video, text):
        return video + self.mix(torch.relu(self.project(text))).mean(1, keepdim=True)


class Poses(Branch):
    def forward(self, video, context_poses):
        return super().forward(video, context_poses)


def marked(module: nn.Module, rows: int):
    program = capture.trace(module.eval(), (torch.randn(1, 8, 64), torch.randn(1, rows, 32)))
    result = HoistInvariants().run(program)
    memo = [remark for remark in result.remarks if remark.rule == "memo"]
    return [node for node in program.graph.nodes if node.meta.get("memo")], memo, program


def test_poses_of_context_frames_are_computed_in_every_call() -> None:
    assert marked(Branch(), 6)[0]
    nodes, remarks, _ = marked(Poses(), 6)
    assert not nodes and not remarks


def test_what_is_computed_as_fast_as_it_is_checked_is_not_kept_and_the_report_says_so() -> None:
    assert marked(Branch(8192), 6)[0]
    nodes, (remark,), _ = marked(Branch(8192), 1)
    assert not nodes and remark.kind is RemarkKind.MISSED
    assert "computed in every call" in remark.message and "takes about as long" in remark.message


def test_weights_on_the_host_of_a_branch_on_a_device_are_not_checked() -> None:
    from lightint_compile.passes.ir.memo_cost import objection

    _, _, program = marked(Branch(), 6)
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    weights = [node for node in program.placeholders() if "weight" in node.name or "bias" in node.name]
    assert objection(nodes, weights, []) == ("", "")
    for node in nodes:
        if isinstance(node.meta.get("val"), torch.Tensor):
            node.meta["val"] = torch.empty(node.meta["val"].shape, device="meta")
    why, hint = objection(nodes, weights, [])
    assert "of the weights lie on the host" in why and "GFLOP" in why and "on the device" in hint
