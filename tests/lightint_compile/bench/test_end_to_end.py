"""bench --end-to-end: frames are those of decoding all latents at once, and the timeline says what was done when."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from lightint_compile.bench.decode_choices import Backend, Order
from lightint_compile.bench.end_to_end import Asked, Result, jobs, measured
from lightint_compile.bench.end_to_end.decoder import ChunkDecoder, HostFrames, check_shown
from lightint_compile.bench.end_to_end.film import Film
from lightint_compile.bench.end_to_end.job import EndToEnd
from lightint_compile.bench.end_to_end.picture import draw
from lightint_compile.bench.end_to_end.prompt import prompt_encoder
from lightint_compile.bench.end_to_end.result import (
    DECODE,
    DENOISE,
    STAGES,
    TEXT,
    TRANSFER,
    Run,
    Span,
    Spread,
    measured_fields,
    spread_of,
)
from lightint_compile.bench.end_to_end.table import lane, print_table
from lightint_compile.bench.processes import Kind
from lightint_compile.cli import main
from lightint_compile.errors import DeviceError, InputError, OptionError
from lightint_compile.models.pixels import as_bytes
from lightint_compile.models.registry import world_model
from lightint_compile.models.world_model import Prompted, Shown

diffusers_installed = pytest.mark.skipif(find_spec("diffusers") is None, reason="the extra diffusers is not installed")
SPANS = (
    *(Span(DENOISE, 0, 0.0, 10.0), Span(DECODE, 0, 10.0, 16.0), Span(TRANSFER, 0, 16.0, 18.0)),
    *(Span(DENOISE, 1, 10.0, 20.0), Span(DECODE, 1, 20.0, 26.0), Span(TRANSFER, 1, 26.0, 28.0)),
)


def job(model: str = "worldplay:tiny", chunks: int = 3, **asked: object) -> EndToEnd:
    (made,) = jobs(model, ["eager"], None, None, chunks, 1, Asked(**asked))  # type: ignore[arg-type]
    return made


def at_once(film: Film) -> torch.Tensor:
    """Frames of a rollout whose latents are all decoded at the end."""
    latents = list(film.subject.rollout())[-1].history
    model = film.subject.model
    assert isinstance(model, Shown)
    made = model.video_decoder(film.job.decoding.device, film.subject.dtype, name=film.job.decoding.decoder)
    with torch.no_grad():
        given = latents / made.scale
        frames = made.module(given)[0] if made.by_chunk else made.module.decode(given).sample
    return as_bytes(frames[0].transpose(0, 1).float() * 0.5 + 0.5).cpu()


def assert_same_pictures(made: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for a rounding to the next byte."""
    assert made.shape == expected.shape and expected.float().std() > 2
    assert int((made.int() - expected.int()).abs().max()) <= 1


def assert_in_order(spans: Sequence[Span], chunks: int) -> None:
    """Up to the tenth of a millisecond by which the clocks of two GPUs may differ."""
    by_stage = {stage: [span for span in spans if span.stage == stage] for stage in STAGES}
    for stage in STAGES:
        mine = by_stage[stage]
        assert [span.chunk for span in mine] == list(range(chunks))
        assert all(0 <= span.begin <= span.end for span in mine)
        assert all(before.end <= after.begin for before, after in pairwise(mine))
    for denoised, decoded, sent in zip(*by_stage.values(), strict=True):
        assert denoised.end <= decoded.begin + 0.1 and decoded.end == sent.begin


@diffusers_installed
@pytest.mark.parametrize(
    ("model", "decoder"),
    [
        pytest.param("worldplay:tiny", None, marks=pytest.mark.slow),
        ("matrix-game:tiny", None),
        pytest.param("matrix-game:tiny", "wan", marks=pytest.mark.slow),
        ("maze:tiny", None),
    ],
)
def test_frames_are_those_of_all_latents_at_once(model: str, decoder: str | None, one_thread: None) -> None:
    film = Film(job(model, 2, decoder=decoder))
    run = film.roll()
    assert_same_pictures(film.frames.video(), at_once(film))
    assert run.frames == len(film.frames.video())
    assert_in_order(run.spans, 2)
    assert run.beside == 0 and sum(span.milliseconds for span in run.spans) <= 1e3 * run.seconds


@diffusers_installed
def test_a_second_rollout_begins_a_new_video(one_thread: None) -> None:
    film = Film(job(chunks=2))
    film.roll(1)
    first = film.roll()
    video = film.frames.video()
    assert film.roll().frames == first.frames == 29 and torch.equal(film.frames.video(), video)


@diffusers_installed
@pytest.mark.parametrize("model", [pytest.param("worldplay:tiny", marks=pytest.mark.slow), "matrix-game:tiny"])
def test_a_text_is_encoded_once_before_the_first_chunk(model: str, one_thread: None) -> None:
    film = Film(job(model, 2, text=True))
    drawn = film.subject.scene
    run = film.roll()
    text, *chunks = run.spans
    assert text.stage == TEXT and text.end <= chunks[0].begin and TEXT not in {span.stage for span in chunks}
    assert_in_order(chunks, 2)
    encoded = film.subject.scene
    assert encoded.text.shape == drawn.text.shape and encoded.text.dtype == drawn.text.dtype
    assert not torch.equal(encoded.text, drawn.text) and torch.equal(encoded.image, drawn.image)
    first = film.frames.video()
    film.roll()
    assert torch.equal(film.frames.video(), first), "the same prompt in every rollout"
    found = Result(film.job, 0.0, **measured_fields([run]), text="an encoder, 5 tokens")
    assert list(found.stages) == [TEXT, *STAGES] and run.beside == 0


@diffusers_installed
def test_released_text_encoders_have_their_sizes() -> None:
    """Parameters of the released checkpoints; the language model is without its two unread layers and last norm."""
    for name, sizes in (("worldplay:8b-480p", ["6.6 B", "218 M"]), ("matrix-game:5b-720p", ["5.68 B"])):
        model = world_model(name)
        assert isinstance(model, Prompted)
        made = model.prompt_encoder(model.scene("meta"), "meta", torch.bfloat16)
        assert [part.split(", ")[1] for part in made.told.split("; ")] == [f"{size} parameters" for size in sizes]
        assert made.scene().text.shape == model.scene("meta").text.shape


def test_a_model_without_a_text_encoder_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing encodes a text for the maze's model"):
        job("maze:tiny", text=True)
    with pytest.raises(InputError, match="nothing encodes a text for toy:small"):
        prompt_encoder(object(), "toy:small", None, torch.device("cpu"), torch.float32)  # type: ignore[arg-type]


def run_line(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lightint", "bench", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_the_command_line_measures_prints_writes_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table, picture = tmp_path / "end.json", tmp_path / "end.png"
    arguments = ["--variant", "eager", "--chunks", "3", "--repeats", "2", "--depth", "1"]
    files = ["--json", str(table), "--timeline", str(picture)]
    assert run_line(monkeypatch, "maze:tiny", "--end-to-end", *arguments, *files) == 0
    (row,) = json.loads(table.read_text())["rows"]
    assert not row["error"] and len(row["seconds"]) == 2 and row["frames"] == 12 and row["text"] == "not included"
    assert row["job"]["rollout"]["depth"] == 1 and row["job"]["decoding"]["order"] == "serial"
    assert row["frames_a_second"] == pytest.approx(12 / row["whole_seconds"])
    assert row["stages"].keys() == set(STAGES) and all(
        0 < each["p50"] <= each["p95"] for each in row["stages"].values()
    )
    assert_in_order([Span(**span) for span in row["timeline"]], 3)
    assert picture.read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "maze:tiny end to end" in shown and "text: not included" in shown and "MazeCodec" in shown


def test_variants_that_compile_at_once_are_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[list[EndToEnd]] = []

    def side_by_side(kind: Kind, jobs: Sequence[EndToEnd], patience: float) -> Iterator[Result]:
        groups.append(list(jobs))
        yield from (Result(each, 0.0) for each in jobs)

    monkeypatch.setattr("lightint_compile.bench.end_to_end.side_by_side", side_by_side)
    asked = [job(chunks=chunks) for chunks in (1, 2, 3)]
    assert [each.job for each in measured(asked, at_once=2)] == asked
    assert [each.job for each in measured(asked)] == asked
    assert groups == [asked[:2], asked[2:], asked[:1], asked[1:2], asked[2:]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--decode", "serial"], "--decode needs --end-to-end"),
        (["--timeline", "x.png"], "--timeline needs --end-to-end"),
        (["--decoder", "wan"], "--decoder needs --end-to-end"),
        (["--text"], "--text needs --end-to-end"),
        (["--end-to-end", "--decoder", "hunyuan"], "did you mean 'hunyuan-1.5'?"),
        (["--end-to-end", "--inductor-depth", "2"], "--inductor-depth is no option of --end-to-end"),
        (["--end-to-end", "--depth", "1", "--depth", "2"], "measures one depth"),
        (["--end-to-end", "--decode", "later"], "'later' is not one of"),
        (["--end-to-end", "--timeline", "no/such/folder/x.png"], "cannot be written"),
        (["--end-to-end", "--variant", "exakt"], "did you mean 'exact'?"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_line(monkeypatch, "worldplay:tiny", *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error


def test_what_cannot_be_done_is_said_before_work_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="fix: --decode serial"):
        job(order=Order.OVERLAP)
    with pytest.raises(DeviceError, match="there is no device cuda:1"):
        job(device="cuda:1")
    with pytest.raises(OptionError, match="cannot be decoded on meta"):
        job(device="meta")
    with pytest.raises(DeviceError, match="needs a CUDA device"):
        job("worldplay:8b-480p")


def test_a_second_gpu_is_always_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightint_compile.bench.end_to_end.job.checked_device", torch.device)
    across = Asked(device="cuda:1").decoding("cuda", "exact")
    assert str(across) == "lightint, overlap, cuda:1" and across.memory_format == torch.channels_last_3d
    assert Asked().decoding("cpu", "exact").memory_format == torch.contiguous_format
    assert str(Asked(order=Order.SERIAL, device="cuda").decoding("cuda", "eager")) == "eager, serial, cuda:0"
    with pytest.raises(OptionError, match="serial decoding has no device of its own"):
        Asked(order=Order.SERIAL, device="cuda:1").decoding("cuda", "exact")


def test_a_decoder_is_compiled_by_the_variants_own_backend_unless_told_otherwise() -> None:
    assert job(backend=Backend.INDUCTOR).decoding.compiled == {
        **{"backend": "inductor", "options": None},
        "fullgraph": True,
    }
    assert job().decoding.compiled is None
    rewritten = Asked().decoding("cpu", "all:drift=1e9").compiled
    assert rewritten is not None and rewritten["options"] == {"preset": "exact"}


@diffusers_installed
@pytest.mark.parametrize(("name", "channels"), [("mg_lightvae_v2", 256), ("mg_lightvae", 512), ("wan", 1024)])
def test_a_pruned_decoder_has_the_widths_of_its_checkpoint(name: str, channels: int) -> None:
    """The release tells how much was pruned by the channels of the first convolution."""
    model = world_model("matrix-game:5b-720p")
    assert isinstance(model, Shown) and model.decoders[0] == "mg_lightvae_v2"
    made = model.video_decoder("meta", name=name)
    assert made.module.get_parameter("decoder.conv_in.weight").shape[0] == channels
    assert ("pruned to" in made.told) == (name != "wan")


def test_a_model_without_a_decoder_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing decodes the latents of toy:small"):
        check_shown(object(), "toy:small")  # type: ignore[arg-type]


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers.models", None)
    with pytest.raises(InputError, match=r"pip install 'lightint\[diffusers\]'"):
        ChunkDecoder(world_model("worldplay:tiny"), job().decoding, torch.float32)


def test_figures_follow_from_spans() -> None:
    runs = [Run(seconds, 29, SPANS) for seconds in (3.0, 1.0, 2.0)]
    found = Result(job(), 0.0, **measured_fields(runs))
    assert (found.whole, found.rate, found.first_frame) == (2.0, 14.5, 18.0)
    assert found.stages == {DENOISE: Spread(10.0, 10.0), DECODE: Spread(6.0, 6.0), TRANSFER: Spread(2.0, 2.0)}
    assert found.beside == 0.5, "chunk 0 is decoded and sent while chunk 1 is denoised"
    assert spread_of([1.0, 2.0, 3.0]) == Spread(2.0, pytest.approx(2.9)) and spread_of([4.0]) == Spread(4.0, 4.0)


def test_chunks_are_shown_along_time(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert lane(SPANS[:3:2], 28.0, 14) == "00000···0·····"
    assert lane([Span(DENOISE, 11, 27.9, 28.0)], 28.0, 4) == "···1", "a short span has a column"
    result = Result(job(), 0.0, **measured_fields([Run(1.0, 29, SPANS)]), compiled_late=2)
    failed = Result(job(), 0.0, error="no memory is left")
    read = Run(1.0, 29, (Span(TEXT, 0, 0.0, 4.0), *SPANS))
    print_table([result, failed, Result(job(), 0.0, **measured_fields([read]), text="T5, 5 tokens")])
    shown = capsys.readouterr().out
    assert "29.0" in shown and "50%" in shown and "no memory" in shown and "compiled after the warm-up: 2" in shown
    assert "text: T5, 5 tokens, 4.0 ms" in shown and "  text     0" in shown
    draw(tmp_path / "picture.png", [result, failed, Result(job(), 0.0, **measured_fields([read]))])
    draw(tmp_path / "none.png", [failed])
    assert (tmp_path / "picture.png").exists() and not (tmp_path / "none.png").exists()


def test_buffers_of_frames_are_used_again() -> None:
    frames = HostFrames()
    assert frames.take(0, torch.full((1, 3, 2, 4, 4), -1.0)) == 2
    first = frames.video()
    frames.take(0, torch.full((1, 3, 2, 4, 4), 2.0))
    assert first.max() == 0 and frames.video().min() == 255 and frames.video().shape == (2, 4, 4, 3)


@pytest.mark.gpu
@diffusers_installed
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_decoding_beside_gives_the_frames_of_decoding_in_line(device: str) -> None:
    if int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        pytest.skip("there is one GPU")
    serial, beside = Film(job(chunks=8, order=Order.SERIAL)), Film(job(chunks=8, device=device))
    serial.roll()
    beside.roll()
    for _ in range(3):
        run = beside.roll()
        assert torch.equal(beside.frames.video(), serial.frames.video())
        assert_in_order(run.spans, 8)
