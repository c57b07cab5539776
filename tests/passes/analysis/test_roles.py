from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import worldplay_tiny
import zoo
from differential import trace_function
from torch import Tensor

from lightint_compile.errors import OptionError
from lightint_compile.passes.analysis.roles import Role, Roles, remarks
from lightint_compile.passes.ir.program import Program


def toy(pick: Callable[[Tensor, Tensor], Tensor] = lambda past, chosen: past.index_select(2, chosen)) -> Program:
    """A latent and frames gathered by number, patchified by one kernel; a pose; a scalar that becomes waves."""

    def step(latent: Tensor, past: Tensor, chosen: Tensor, pose: Tensor, level: Tensor) -> Tensor:
        kernel = torch.zeros(8, 8, 1, 1, 1)
        context = F.conv3d(pick(past, chosen), kernel).mean()
        return F.conv3d(latent, kernel) + context + pose.inverse().sum() + (level[:, None] * 0.1).cos().sum()

    arguments = {
        "latent": torch.zeros(1, 8, 4, 4, 4),
        "past": torch.zeros(1, 8, 20, 4, 4),
        "chosen": torch.tensor([0, 1]),
        "pose": torch.eye(4).expand(1, 24, 4, 4),
        "level": torch.zeros(1),
    }
    return trace_function(step, arguments)


def test_roles_of_a_small_step():
    roles = toy().fact(Roles)
    found = {path: str(evidence.role) for path, evidence in roles.evidence.items() if evidence.role != Role.PARAMETER}
    assert found == {"latent": "latent", "past": "context", "pose": "camera", "level": "timestep"}
    assert roles.of("chosen") is None


@pytest.mark.parametrize("pick", [lambda x, index: x.index_select(-3, index), lambda x, index: x[:, :, index]])
def test_frames_picked_in_other_spellings_are_context(pick: Callable[[Tensor, Tensor], Tensor]):
    assert toy(pick).fact(Roles).of("past") is Role.CONTEXT


def part_of_a_clip(noise: Tensor, history: Tensor, steps: int) -> Tensor:
    """Denoises behind the last two frames of the history, which are put back in each step; the others come out."""
    kernel, past = torch.eye(8)[:, :, None, None, None], history[:, :, -2:]
    latents = torch.cat([past, noise[:, :, 2:]], 2)
    for _ in range(steps):
        made = latents - 0.3 * F.conv3d(latents, kernel)
        latents = torch.cat([past, made[:, :, 2:]], 2)
    return latents[:, :, 2:]


@pytest.mark.parametrize(("steps", "found"), [(2, {"noise": "latent", "history": "context"}), (0, {})])
def test_what_the_steps_begin_with_is_the_latent_where_a_part_of_it_comes_out(steps: int, found: dict[str, str]):
    """Without a loop nothing says which of the two is denoised."""
    inputs = {"noise": torch.randn(1, 8, 6, 4, 4), "history": torch.randn(1, 8, 12, 4, 4)}
    roles = trace_function(lambda noise, history: part_of_a_clip(noise, history, steps), inputs).fact(Roles)
    assert {path: str(evidence.role) for path, evidence in roles.evidence.items()} == found


def test_every_role_of_a_world_model_chunk():
    roles = worldplay_tiny.program().fact(Roles)
    assert roles.paths(Role.LATENT) == ["noise"]
    assert roles.paths(Role.CONTEXT) == ["history"]
    assert roles.paths(Role.CAMERA) == ["extrinsics"]
    assert roles.paths(Role.INTRINSICS) == ["intrinsics"]
    assert roles.paths(Role.ACTION) == ["actions"]
    assert set(roles.paths(Role.TEXT)) == {"text", "glyphs", "vision"}
    assert roles.of("image") is None
    assert "transformer.double_blocks.0.img_attn_q.weight" in roles.paths(Role.PARAMETER)


def test_history_at_several_resolutions_is_context():
    roles = zoo.program("helios").fact(Roles)
    assert roles.of("hidden_states") is Role.LATENT
    histories = [f"latents_history_{length}" for length in ("short", "mid", "long")]
    assert set(roles.paths(Role.CONTEXT)) == set(histories)
    assert roles.of("timestep") is Role.TIMESTEP
    assert roles.of("encoder_hidden_states") is Role.TEXT


def test_a_flattened_pose_is_a_camera():
    assert zoo.program("sana_wm").fact(Roles).paths(Role.CAMERA) == ["camera_conditions"]


def test_what_the_user_states_wins_and_feeds_the_rest():
    program = toy()
    program.roles = {"past": "latent"}
    roles = program.fact(Roles)
    assert roles.of("past") is Role.LATENT
    assert roles.evidence["past"].stated
    assert "latent" not in roles.paths(Role.CONTEXT)


@pytest.mark.parametrize(
    ("stated", "fix"),
    [({"pats": "context"}, "did you mean 'past'?"), ({"past": "contxt"}, "did you mean 'context'?")],
)
def test_an_unknown_path_or_role_is_an_error_with_the_nearest_word(stated: dict[str, str], fix: str):
    program = toy()
    program.roles = stated
    with pytest.raises(OptionError) as error:
        program.fact(Roles)
    assert error.value.fix == fix
    assert next(iter(stated)) in error.value.where


def test_remarks_say_what_was_inferred_and_from_what():
    program = toy()
    program.roles = {"chosen": "action"}
    said = {remark.args["input"]: remark for remark in remarks(program)}
    assert said["pose"].message == "pose is camera: its last two axes are a 4x4 matrix for every frame"
    assert said["chosen"].args["stated"]
    assert said["past"].message == "past is context: it is latent but for the number of frames"
    assert set(said) == {"latent", "past", "chosen", "pose", "level"}


def test_an_input_without_a_role_is_said_so():
    (remark,) = remarks(trace_function(lambda tensor: tensor.nonzero(), {"tensor": torch.ones(3)}))
    assert remark.message == "tensor has no role"
    assert "roles" in remark.hint
