"""A whole evaluation of the smallest maze, its JSON, going on after an interruption, and what cannot be asked."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from lightint_compile.cli.app import app, main
from lightint_compile.cli.evaluating import _listed
from lightint_compile.errors import InputError, OptionError
from lightint_compile.evaluating import Plan, evaluate, print_table, write_outputs
from lightint_compile.evaluating import job as job_module
from lightint_compile.evaluating.asked import true_world
from lightint_compile.evaluating.maze_truth import protocol_text
from lightint_compile.evaluating.picture import pareto
from lightint_compile.evaluating.recordings import recording, recordings
from lightint_compile.evaluating.rolling import GivenChunks
from lightint_compile.evaluating.table import markdown
from lightint_compile.evaluating.true_world import FAMILIES
from lightint_compile.evaluating.variants import Setup, variant_of, variants_of
from lightint_compile.models.registry import world_model

pytest.importorskip("torchmetrics")
pytestmark = pytest.mark.filterwarnings("ignore:.*no trained weights")

KEYS = {
    *("variant", "family", "mazes", "psnr_truth", "psnr_truth_revisit", "psnr_eager", "milliseconds_per_chunk"),
    *("ssim_truth", "ssim_truth_revisit", "ssim_eager", "psnr_truth_interval", "psnr_truth_loss", "speed"),
    *("psnr_truth_worst_decile", "psnr_truth_by_chunk", "milliseconds_p50", "milliseconds_p95", "milliseconds_p99"),
    *("first_frame_milliseconds", "cold_seconds", "peak_gigabytes", "recompiles", "host_reads_per_chunk"),
}


def quiet() -> Console:
    return Console(file=io.StringIO(), width=160)


def plan(**changes: Any) -> Plan:
    settings: dict[str, Any] = {
        "variants": ["no-memory"],
        "families": ["protocol", "novel"],
        "scenes": 2,
        "latents": 12,
    }
    return Plan(model="maze:tiny", delegate="eager", **{**settings, **changes})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("evaluation") / "found.json"
    made = evaluate(plan(variants=["no-memory", "other-seed"], families=FAMILIES), file, quiet())
    assert json.loads(file.read_text())["rows"] == json.loads(json.dumps(made["rows"]))
    assert sorted(each.name for each in file.parent.iterdir()) == ["found.json"]
    return made


def row(found: dict[str, Any], variant: str, family: str) -> dict[str, Any]:
    (one,) = [row for row in found["rows"] if (row["variant"], row["family"]) == (variant, family)]
    return one


def test_there_is_a_row_for_every_variant_and_family(found: dict[str, Any]) -> None:
    names = ("eager", "no-memory", "other-seed", "copy-last-frame", "codec")
    assert [(row["variant"], row["family"]) for row in found["rows"]] == [
        (variant, family) for variant in names for family in FAMILIES
    ]
    assert all(row.keys() >= KEYS and row["mazes"] == 2 for row in found["rows"])


def test_eager_equals_itself_and_others_do_not(found: dict[str, Any]) -> None:
    assert row(found, "eager", "novel")["psnr_eager"] == 100.0
    assert row(found, "eager", "novel")["psnr_truth_loss"] == 0.0
    assert row(found, "no-memory", "protocol")["psnr_eager"] < 100.0
    assert row(found, "other-seed", "novel")["psnr_eager"] < row(found, "no-memory", "novel")["psnr_eager"]


def test_rows_tell_time_and_reads_and_drift(found: dict[str, Any]) -> None:
    eager = row(found, "eager", "protocol")
    assert 0 < eager["milliseconds_p50"] <= eager["milliseconds_p95"] <= eager["milliseconds_p99"]
    assert eager["speed"] == 1.0 and eager["host_reads_per_chunk"] == 0 and eager["recompiles"] == 0
    assert eager["first_frame_milliseconds"] > 0
    assert eager["steps_per_chunk"] == 4 and eager["refused_steps_per_chunk"] == 0
    assert row(found, "copy-last-frame", "protocol")["steps_per_chunk"] is None
    assert len(eager["psnr_truth_by_chunk"]) == 2  # 3 chunks, one of them given
    assert eager["revisited_frames"] > 0 and eager["psnr_truth_revisit"] is not None
    assert row(found, "eager", "novel")["psnr_truth_revisit"] is None
    assert row(found, "copy-last-frame", "novel")["milliseconds_per_chunk"] is None


def test_table_picture_and_page(found: dict[str, Any], tmp_path: Path) -> None:
    console = quiet()
    print_table(found, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "no-memory" in said and "copy-last-frame" in said
    text = markdown(found)
    assert text.count("\n| ") == 1 + len(found["rows"]) and "`other-seed`" in text
    outputs = {name: tmp_path / name for name in ("plot", "html", "markdown")}
    write_outputs(found, **outputs)
    assert outputs["plot"].read_bytes().startswith(b"\x89PNG")
    assert outputs["html"].read_text().count("<tr>") == 1 + len(found["rows"])
    assert outputs["markdown"].read_text() == text


def test_pareto_line_keeps_what_nothing_beats() -> None:
    assert pareto([(3.0, 5.0), (1.0, 2.0), (2.0, 1.0), (3.0, 6.0)]) == [(1.0, 2.0), (3.0, 6.0)]


def test_an_interrupted_evaluation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, rolled = tmp_path / "found.json", []
    original = job_module.roll

    def roll(opened: Any, world: Any, walk: Any, *args: Any, **kwargs: Any) -> Any:
        if "chunks" not in kwargs:
            rolled.append(walk.name)
            if len(rolled) == 3:
                raise KeyboardInterrupt
        return original(opened, world, walk, *args, **kwargs)

    monkeypatch.setattr(job_module, "roll", roll)
    asked = plan(families=["novel"])
    with pytest.raises(KeyboardInterrupt):
        evaluate(asked, file, quiet())
    with (tmp_path / "found.json.work" / "results.jsonl").open("a") as lines:
        lines.write('{"variant": "no-mem')  # cut off
    again = evaluate(asked, file, quiet())
    assert rolled == ["novel-0", "novel-1", "novel-0", "novel-0", "novel-1"]
    assert row(again, "no-memory", "novel")["mazes"] == 2
    assert not (tmp_path / "found.json.work").exists()


def test_results_of_other_settings_are_put_away(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    work = tmp_path / "found.json.work"
    work.mkdir()
    (work / "settings.json").write_text("{}")
    (work / "results.jsonl").write_text("no result\n")
    made = evaluate(plan(variants=["eager"], families=["novel"], scenes=1), file, quiet())
    assert row(made, "eager", "novel")["mazes"] == 1


@pytest.mark.slow
def test_presets_are_compiled_once_and_exact_ones_equal_eager() -> None:
    made = evaluate(plan(variants=["exact", "all"], latents=32), None, quiet())
    assert row(made, "exact", "protocol")["psnr_eager"] > 60.0
    assert all(row["recompiles"] == 0 for row in made["rows"])
    ours = row(made, "all", "protocol")
    assert ours["host_reads_per_chunk"] >= 1
    assert 2 <= ours["steps_per_chunk"] <= 4 and 0 <= ours["refused_steps_per_chunk"] <= 2
    assert row(made, "exact", "protocol")["steps_per_chunk"] == 4


def test_given_chunks_come_first() -> None:
    given = torch.arange(8.0).view(1, 1, 8, 1, 1)
    call = GivenChunks(lambda noise: noise + 1, given)
    noise = torch.zeros(1, 1, 4, 1, 1)
    assert [call(noise).flatten().tolist() for _ in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [1, 1, 1, 1]]


@pytest.mark.parametrize("family", FAMILIES)
def test_walks_are_those_of_their_number(family: str) -> None:
    world = true_world("maze:tiny", torch.device("cpu"), 0)
    walk, same, other = (world.walk(family, number, 32) for number in (0, 0, 1))
    assert len(walk.path) == 32 and walk.seed < 2**16
    assert torch.equal(walk.path.extrinsics, same.path.extrinsics)
    assert not torch.equal(walk.path.extrinsics, other.path.extrinsics)


def test_long_protocols_repeat_the_published_legs() -> None:
    assert protocol_text(0, 64) == "left-31,right-32"
    assert protocol_text(1, 32) == "w-15,s-16"
    assert protocol_text(0, 160) == "left-31,right-32,left-32,right-32,left-32"
    assert len(world_model("maze:tiny").camera_path(protocol_text(1, 256))) == 256


def test_recordings_are_rigid_and_as_long_as_asked() -> None:
    assert [len(poses) for poses, _ in recordings()] == [451, 800]
    poses, times = recording(1, 256)
    assert torch.allclose(poses[:, :3, :3] @ poses[:, :3, :3].mT, torch.eye(3, dtype=torch.float64), atol=1e-6)
    assert float(times[-1] - times[0]) == pytest.approx(255 / 6, abs=0.2)
    with pytest.raises(InputError, match="no recording is long enough"):
        recording(0, 1000)


def test_names_of_variants() -> None:
    assert _listed("eager, all:drift=0.2,overlap=0.7,steps-2") == ("eager", "all:drift=0.2,overlap=0.7", "steps-2")
    more = "all+fp8-linear{on-cpu=true,min-rows=16}:drift=0.2"
    assert _listed(f"exact,{more},overlap=0.7,off") == ("exact", f"{more},overlap=0.7", "off")
    assert [each.name for each in variants_of(["steps-2", "eager", "steps-2"])] == ["eager", "steps-2"]
    with pytest.raises(OptionError, match="did you mean 'no-memory'"):
        variant_of("no-memroy")
    with pytest.raises(OptionError, match="takes no options"):
        variant_of("eager:x=1")
    with pytest.raises(OptionError):
        variant_of("all:dirft=1")
    for wrong in ("0", "1.5", "true"):
        with pytest.raises(OptionError, match="no schedule of"):
            variant_of(f"exact:steps={wrong}")


def test_a_preset_takes_a_shorter_schedule() -> None:
    world = true_world("maze:tiny", torch.device("cpu"), 0)
    setup = Setup(world, torch.device("cpu"), torch.float32, "eager")
    for text, steps in {"exact": 4, "exact:steps=2": 2, "all:drift=0.2,steps=1": 1}.items():
        with variant_of(text).opened(setup) as opened:
            assert opened.compiles and opened.model.spec.denoising_steps == steps
            assert opened.module.config.steps == steps  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--variants", "no-memroy"], "did you mean 'no-memory'?"),
        (["--families", "novle"], "did you mean 'novel'?"),
        (["--model", "worldplay:tiny"], "nothing renders the truth"),
        (["--latents", "18"], "a chunk has 4 frames"),
        (["--latents", "4"], "1 chunks are given"),
        (["--dtype", "float23"], "did you mean 'float32'?"),
        (["--json", "no/such/folder/x.json"], "there is no folder"),
    ],
)
def test_what_cannot_be_asked_is_one_error(arguments: list[str], said: str) -> None:
    asked = ["evaluate", "--model", "maze:tiny", "--device", "cpu", *arguments]
    result = CliRunner().invoke(app, asked, standalone_mode=False)
    assert result.exit_code and said in str(result.exception)


def test_an_error_of_the_command_line_is_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["lightint", "evaluate", "--variants", "no-memroy", "--device", "cpu"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and "did you mean 'no-memory'?" in capsys.readouterr().err
