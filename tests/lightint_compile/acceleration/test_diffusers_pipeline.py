"""A pipeline of diffusers, unmodified: its transformer and its VAE's decoder are compiled in place by one line."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers_pipelines import PIPELINES
from torch import Tensor
from torch._dynamo.utils import counters

import lightint_compile

pytestmark = pytest.mark.usefixtures("one_thread")


def pipeline() -> diffusers.WanPipeline:
    torch.manual_seed(0)
    transformer = diffusers.WanTransformer3DModel(
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        rope_max_seq_len=32,
    )
    vae = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    for module in (transformer, vae):
        module.eval().requires_grad_(False)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = diffusers.WanPipeline(None, None, vae, scheduler, transformer=transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def video(pipe: diffusers.WanPipeline, steps: int = 2) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    text = torch.randn(1, 6, 16, generator=draw)
    sizes = {"height": 16, "width": 16, "num_frames": 3}
    return pipe(
        prompt_embeds=text, guidance_scale=1.0, num_inference_steps=steps, generator=draw, output_type="pt", **sizes
    ).frames


def test_a_pipeline_runs_as_before_with_its_modules_compiled_in_place() -> None:
    torch._dynamo.reset()
    pipe = pipeline()
    expected, keys = video(pipe), list(pipe.transformer.state_dict())
    transformer, decoder = pipe.transformer, pipe.vae.decoder
    counters.clear()
    with lightint_compile.accelerate(pipe, delegate="eager") as handle:
        torch.testing.assert_close(video(pipe), expected, rtol=1e-4, atol=1e-4)
        assert pipe.transformer is transformer and pipe.vae.decoder is decoder
        assert list(transformer.state_dict()) == keys and counters["stats"]["unique_graphs"] >= 2
        sections = handle.report().sections
    assert sum(section.rewritten for section in sections) and "preset" in sections[-1].options
    counters.clear()
    torch.testing.assert_close(video(pipe), expected)
    assert counters["stats"]["unique_graphs"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LTXPipeline", "CogVideoXPipeline"])
def test_pipelines_of_other_models_make_eagers_video_and_compile_nothing_anew(name: str) -> None:
    torch._dynamo.reset()
    made = PIPELINES[name]()
    expected = [made(seed, steps=2) for seed in (1, 2)]
    counters.clear()
    with lightint_compile.accelerate(made.pipe, preset="exact", delegate="eager") as handle:
        torch.testing.assert_close(made(1, steps=2), expected[0])
        graphs = counters["stats"]["unique_graphs"]
        torch.testing.assert_close(made(2, steps=2), expected[1])
        assert counters["stats"]["unique_graphs"] == graphs and not counters["graph_break"]
        sections = handle.report().sections
        assert any("encoder_hidden_states" in each.message for part in sections for each in part.remarks)
        assert handle.decisions() == []
    assert torch.equal(made(1, steps=2), expected[0])
