"""bench all: parts as processes, what is kept of them, and the page of what real runs wrote."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lightint_compile import evaluating
from lightint_compile.bench import about, checks, compiling, flops, kernels, rollout
from lightint_compile.bench.depths import check_depths
from lightint_compile.bench.parts import job as job_module
from lightint_compile.bench.parts.job import Asked, run_all
from lightint_compile.bench.parts.kept import Folder, Run
from lightint_compile.bench.parts.listed import APART, PAGE, PARTS, Command, Kind, Part, Scale, part_names
from lightint_compile.bench.parts.markdown import escaped
from lightint_compile.bench.parts.page import Outcome, write_page
from lightint_compile.bench.parts.running import caches_in, environment, machine_of
from lightint_compile.bench.rollout_job import Result, jobs_of
from lightint_compile.cli import main
from lightint_compile.errors import OptionError
from lightint_compile.evaluating.variants import variants_of
from lightint_compile.models.registry import world_model

RECORDED = Path(__file__).resolve().parents[2] / "data" / "bench_all"
"""What one run of all parts on a CPU wrote."""

STAND_IN = """
import os, shutil, subprocess, sys, time
home, arguments = sys.argv[1], sys.argv[2:]
with open(home + "/calls", "a") as calls:
    print(*arguments, file=calls)
named = arguments[arguments.index("--json") + 1]
name = os.path.basename(named).removesuffix(".json")
print("working on", name, flush=True)
if name == os.environ.get("FAILS"):
    print("lightint: there is no memory left", file=sys.stderr)
    sys.exit(2)
if name == os.environ.get("DIES"):
    os.kill(os.getpid(), 9)
if name == os.environ.get("HANGS"):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print("child", child.pid, flush=True)
    time.sleep(60)
if name != os.environ.get("EMPTY"):
    for suffix in (".json", ".md"):
        recorded = os.path.join(RECORDED, name + suffix)
        if os.path.exists(recorded):
            shutil.copy(recorded, os.path.dirname(named))
""".replace("RECORDED", repr(str(RECORDED)))
"""Stands for ``lightint``: it writes what was recorded, and does what the environment says of one part."""

MACHINE = {name: f"a {name}" for name in about.MACHINE}


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text())
    return found


def part(name: str) -> Part:
    return next(each for each in PARTS if each.name == name)


def quiet() -> Console:
    return Console(file=open(os.devnull, "w"), width=120)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(job_module, "machine_of", lambda device: MACHINE)
    call = [sys.executable, "-S", "-c", STAND_IN, str(tmp_path)]
    monkeypatch.setattr(job_module, "call_of", lambda arguments: [*call, *arguments])
    return tmp_path


def measured(home: Path, *names: str, **asked: Any) -> bool:
    return run_all(Asked(home / "out", names, "cpu", **asked), quiet())


def called(home: Path) -> list[str]:
    """The parts that were run, in order."""
    lines = (home / "calls").read_text().splitlines() if (home / "calls").exists() else []
    return [Path(re.findall(r"--json (\S+)", line)[0]).stem for line in lines]


def page(home: Path) -> str:
    return (home / "out" / PAGE).read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the page of everything that was recorded."""
    folder = Folder(tmp_path_factory.mktemp("whole"))
    shutil.copytree(RECORDED, folder.path, dirs_exist_ok=True)
    (folder.path / "evaluation.png").write_bytes(b"drawn by its command")
    machine, outcomes = {name: recorded("kernels")["about"][name] for name in about.MACHINE}, []
    for each in PARTS:
        command = each.commands[Scale.CPU]
        outcomes.append(Outcome(each, command, Run(command.arguments, machine, "2026-11-28", 12.4)))
    shown = write_page(folder, outcomes, machine)
    assert not any(each.failed for each in shown) and len(shown) == len(PARTS)
    return folder.path


def sections(text: str) -> dict[str, str]:
    """The text below each heading."""
    first, *rest = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    return {"": first, **dict(zip(rest[::2], rest[1::2], strict=True))}


def figures_of(name: str) -> Iterator[str]:
    """Every figure that the page has to have of what a part wrote."""
    found, kind = recorded(name), part(name).kind
    if kind is Kind.KERNELS:
        for site in found["sites"]:
            yield from (f"| {way} | {time:.3f} |" for way, time in site["ms"].items())
            yield from (f"{flops / site['ms'][way] / 1e9:.3g}" for way, flops in site["flops"].items())
        for row in found["sweep"]:
            yield f"{row['dense'] / row['forced']:.2f} / {row['dense'] / row['chosen']:.2f}"
    elif kind is Kind.ROLLOUT:
        for row in found["rows"]:
            yield f"| {row['job']['variant']} | 2: {sum(row['chunks']) / 1e3:.2f} |"
            yield f"{row['job']['variant']} depth 2: chunks ms {' '.join(f'{each:.0f}' for each in row['chunks'])}"
            yield from (f"{stage} {ms:.1f}" for stage, ms in row["stages"].items())
            yield from (f"{kind} {ms:.2f}" for kind, ms in row["driver"].items())
    elif kind is Kind.COMPILE:
        yield from (f"{row[key]:.2f}" for row in found["rows"] for key in ("trace", "compile", "later"))
    elif kind is Kind.CHECKS:
        yield from (f"{value:.4g}" for row in found["checks"].values() for value in row.values())
    elif kind is Kind.FLOPS:
        for chunks in found["variants"].values():
            yield f"**{sum(sum(chunk['flops'].values()) for chunk in chunks) / 1e15:.2f}**"
    else:
        for row in found["rows"]:
            yield from (f"{row[key]:.2f}" for key in ("psnr_truth", "psnr_eager", "psnr_truth_worst_decile"))
            yield f"{row['ssim_truth']:.3f}"
            if row["milliseconds_per_chunk"]:
                yield f"{row['milliseconds_per_chunk']:.1f} | {row['milliseconds_p95']:.1f}"


@pytest.mark.parametrize("name", part_names())
def test_the_page_has_every_figure_that_was_recorded(name: str, whole: Path) -> None:
    said = sections((whole / PAGE).read_text())[part(name).title]
    wanted = list(map(str, figures_of(name)))
    assert len(wanted) >= 3 and [figure for figure in wanted if figure not in said] == []


def test_the_page_says_by_what_and_on_what(whole: Path) -> None:
    text = (whole / PAGE).read_text()
    for name in about.MACHINE:
        assert f"| {name} | {recorded('kernels')['about'][name]} |" in text
    for each in PARTS:
        ran = recorded(each.name)["about"]
        shown = re.findall(r"```\n(lightint .*)\n```", sections(text)[each.title])
        assert [command.replace(str(whole), "out/bench") for command in shown] == [ran["command"]]
        assert f"| {each.name} | 12 | 2026-11-28 | measured |" in text
        assert ran.keys() >= {"date", *about.MACHINE}


def test_cold_starts_are_a_table_of_their_own(whole: Path) -> None:
    text = sections((whole / PAGE).read_text())["Cold start"]
    for name in ("worldplay", "matrix-game"):
        for row in recorded(name)["rows"]:
            assert f"| {name} | {row['job']['variant']} depth 2 | {row['warm_seconds']:.2f} |" in text
    for row in recorded("compile")["rows"]:
        assert f"| compile | {row['variant']}, {row['depth']} blocks | {row['trace'] + row['compile']:.2f} |" in text
    cold = [row for row in recorded("evaluation")["rows"] if row["cold_seconds"] is not None]
    assert cold and all(f"{row['variant']}, {row['family']} | {row['cold_seconds']:.2f} |" in text for row in cold)


def test_quality_stands_beside_the_time_of_its_own_rollouts_alone(whole: Path) -> None:
    said = sections((whole / PAGE).read_text())
    assert [title for title, text in said.items() if "PSNR" in text] == [part("evaluation").title]
    assert "worldplay" not in said[part("evaluation").title]
    for name in ("worldplay", "matrix-game"):
        assert "Weights are random" in said[part(name).title]


def test_the_page_is_good_markdown(whole: Path) -> None:
    text = (whole / PAGE).read_text()
    lines = text.splitlines()
    assert text.startswith("# ") and sum(line.startswith("# ") for line in lines) == 1
    assert text.endswith("\n") and "\n\n\n" not in text and not any(line != line.rstrip() for line in lines)
    for before, line, after in zip(lines, lines[1:], [*lines[2:], ""], strict=False):
        if line.startswith("#"):
            assert before == after == ""
        if line.startswith("|"):
            assert before == "" or (before.startswith("|") and columns(before) == columns(line))
            assert after == "" or after.startswith("|")
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert pictures == [f"{name}.png" for name in ("kernels", "worldplay", "matrix-game", "evaluation")]
    for name in pictures[:-1]:
        assert (whole / name).read_bytes().startswith(b"\x89PNG")


def columns(row: str) -> int:
    return len(re.findall(r"(?<!\\)\|", row))


def test_text_of_errors_means_nothing_to_markdown() -> None:
    assert escaped("a | b\n*c* <d>") == r"a \| b \*c\* \<d>"


def test_finished_parts_are_kept_until_something_differs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(home, "checks", "kernels") and called(home) == ["kernels", "checks"]
    assert "* worldplay: not asked for" in page(home) and "- " not in page(home).partition("## What was not run")[2]
    assert measured(home, "checks", "kernels") and called(home) == ["kernels", "checks"]
    assert measured(home, "flops") and called(home)[2:] == ["flops"]
    assert "## Attention operators" in page(home), "what was measured before is on the page too"
    assert measured(home, "checks", again=True) and called(home)[3:] == ["checks"]
    (home / "out" / "checks.json").unlink()
    assert measured(home, "checks") and called(home)[4:] == ["checks"]
    monkeypatch.setattr(job_module, "machine_of", lambda device: {**MACHINE, "torch": "another"})
    assert measured(home, "kernels") and called(home)[5:] == ["kernels"]
    assert "* checks: its figures in the folder are of another command, device or version" in page(home)
    assert "## Checks of kept results" not in page(home)


def test_another_command_is_another_part(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(home, "checks")
    longer = Command(("bench", "checks", "--seconds", "2"), 5)
    other = dataclasses.replace(part("checks"), commands={"cpu": longer})
    monkeypatch.setattr(job_module, "chosen", lambda names: (other,))
    monkeypatch.setattr(job_module, "PARTS", (other,))
    assert measured(home, "checks") and called(home) == ["checks", "checks"]
    assert (home / "calls").read_text().splitlines()[1].startswith("bench checks --seconds 2 --json ")


def test_a_part_that_fails_is_said_and_the_rest_goes_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILS", "kernels")
    assert not measured(home, "kernels", "checks")
    assert called(home) == ["kernels", "checks"] and "## Checks of kept results" in page(home)
    assert "| failed: lightint: there is no memory left |" in page(home)
    assert "It did not come to its end: lightint: there is no memory left" in page(home)
    assert (home / "out" / "kernels.log").read_text().splitlines()[0] == "working on kernels"
    monkeypatch.delenv("FAILS")
    assert measured(home, "kernels", "checks") and called(home)[2:] == ["kernels"]
    assert "failed" not in page(home)


def test_a_part_that_is_killed_does_not_blame_its_last_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIES", "checks")
    assert not measured(home, "checks")
    assert "failed: killed by SIGKILL; its last line: working on checks" in page(home)


def test_a_part_without_figures_has_failed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMPTY", "checks")
    assert not measured(home, "checks") and "failed: it wrote no figures" in page(home)


def test_a_row_without_figures_is_a_failure_and_no_reason_to_measure_again(home: Path) -> None:
    assert measured(home, "worldplay")
    file = home / "out" / "worldplay.json"
    found = json.loads(file.read_text())
    found["rows"][0] = {**found["rows"][0], "chunks": [], "stages": {}, "driver": {}, "error": "no memory | is left"}
    file.write_text(json.dumps(found))
    assert not measured(home, "worldplay") and called(home) == ["worldplay"]
    assert r"eager depth 2 failed: no memory \| is left" in page(home)
    assert measured(home, "checks"), "the part that was not asked for does not count"


def test_a_part_is_stopped_when_its_time_is_over(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANGS", "kernels")
    start = time.monotonic()
    assert not measured(home, "kernels", "checks", patience=2.0)
    assert time.monotonic() - start < 30
    child = int((home / "out" / "kernels.log").read_text().split()[-1])
    assert f"failed: stopped after 2 s; its last line: child {child}" in page(home)
    assert is_over(child) and "## Checks of kept results" in page(home)


def is_over(pid: int) -> bool:
    """Whether a process has ended, waited for or not."""
    status = Path(f"/proc/{pid}/stat")
    deadline = time.monotonic() + 10
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] not in "ZX":
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_stopped_command_goes_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = job_module.run

    def interrupted(call: list[str], log: Path, *rest: Any) -> str:
        if log.stem == "checks":
            raise KeyboardInterrupt
        return run(call, log, *rest)

    monkeypatch.setattr(job_module, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured(home, "kernels", "checks")
    assert "## Attention operators" in page(home) and "* checks: stopped before it came to its end" in page(home)
    monkeypatch.setattr(job_module, "run", run)
    assert measured(home, "kernels", "checks") and called(home) == ["kernels", "checks"]


def test_a_signal_to_end_ends_the_part_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANGS", "kernels")
    before, log = signal.getsignal(signal.SIGTERM), home / "out" / "kernels.log"

    def end() -> None:
        while not (log.exists() and "child" in log.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end).start()
    with pytest.raises(SystemExit, match="143"):
        measured(home, "kernels")
    assert is_over(int(log.read_text().split()[-1])) and signal.getsignal(signal.SIGTERM) is before
    assert "* kernels: stopped before it came to its end" in page(home)


def test_caches_are_empty_but_for_measured_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "old"))
    for name in ("lightint/cost/rates.json", "lightint/artifact", "fxgraph"):
        (tmp_path / "old" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "old" / name).write_text("{}")
    found = Path(caches_in(str(tmp_path / "new"))["TORCHINDUCTOR_CACHE_DIR"])
    assert [each.relative_to(found) for each in found.rglob("*.*")] == [Path("lightint/cost/rates.json")]
    assert not list(found.rglob("artifact")) and not list(found.rglob("fxgraph"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert environment("cpu")["CUDA_VISIBLE_DEVICES"] == "" and environment("cuda")["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.mark.parametrize("scale", Scale)
@pytest.mark.parametrize("name", part_names())
def test_commands_are_taken_by_the_command_line(
    name: str, scale: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def seen(*args: Any, **kwargs: Any) -> dict[str, Any]:
        asked.append({**{f"{number}": each for number, each in enumerate(args)}, **kwargs})
        return {}

    for module in (checks, compiling, flops, kernels, rollout):
        monkeypatch.setattr(module, "run", seen)
    monkeypatch.setattr(evaluating, "evaluate", seen)
    for left_out in ("print_table", "write_outputs"):
        monkeypatch.setattr(evaluating, left_out, lambda *_, **__: None)
    command = part(name).commands[scale]
    arguments = Folder(tmp_path).arguments(part(name), command)
    monkeypatch.setattr(sys, "argv", ["lightint", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0 and len(asked) == 1 and 0 < command.minutes <= 360
    _check_names(part(name).kind, asked[0])
    assert str(tmp_path / f"{name}.json") in str(asked[0])


def _check_names(kind: Kind, asked: dict[str, Any]) -> None:
    """Models and variants exist: what runs them was not called."""
    if kind is Kind.ROLLOUT:
        model = world_model(asked["model"])
        for option in ("depths", "inductor_depths"):
            if asked[option]:
                check_depths(model, asked[option], option)
        for variant in asked["variants"] or rollout.variants_of(asked["model"]):
            assert jobs_of(variant, (2,), asked["model"], "w-15", 1, "cpu")
    elif kind in (Kind.FLOPS, Kind.COMPILE):
        world_model(asked["model"])
        assert set(asked.get("variants", ())) <= set(flops.VARIANTS)
    elif kind is Kind.EVALUATION:
        plan = asked["0"]
        plan.checked(_World(world_model(plan.model)))
        assert variants_of(plan.variants)


@dataclasses.dataclass
class _World:
    model: Any


def test_on_a_cpu_nothing_is_briefer(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--brief is for a GPU"):
        run_all(Asked(tmp_path, device="cpu", brief=True))
    assert not list(tmp_path.iterdir())


def test_what_is_no_part_is_a_command_or_a_folder(whole: Path) -> None:
    text = sections((whole / PAGE).read_text())["What was not run"]
    assert all(f"* `{name}`, which is no part: {why}\n" in text + "\n" for name, why in APART.items())
    root = Path(__file__).resolve().parents[3]
    assert (root / "tests/benchmarks").is_dir() and "\nbench-tests:" in (root / "Makefile").read_text()
    assert "bench all --out out/bench" in (root / "Makefile").read_text()


def test_a_file_of_figures_says_what_it_is_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/any/bin/lightint", "bench", "worldplay:tiny", "--variant", "a b"])
    about.write(tmp_path / "figures.json", {"rows": [1]}, "cpu")
    assert [each.name for each in tmp_path.iterdir()] == ["figures.json"]
    found = json.loads((tmp_path / "figures.json").read_text())
    assert list(found) == ["about", "rows"] and found["about"].keys() == {"command", "date", *about.MACHINE}
    assert found["about"]["command"] == "lightint bench worldplay:tiny --variant 'a b'"
    assert re.fullmatch(r"([0-9a-f]{12}( with changes [0-9a-f]{8})?)?", found["about"]["commit"])


def test_the_machine_is_asked_in_a_process_of_its_own() -> None:
    found = machine_of("cpu")
    assert tuple(found) == about.MACHINE and found["torch"] and found["cores"] >= 1


def test_results_come_back_from_their_files() -> None:
    row = recorded("worldplay")["rows"][-1]
    result = Result.from_dict(row)
    assert json.loads(json.dumps(dataclasses.asdict(result))) == row and result.seconds == sum(row["chunks"]) / 1e3
    for name, chunks in recorded("flops")["variants"].items():
        made = flops.Rollout.from_dict(chunks)
        assert json.loads(json.dumps(made.to_dict())) == chunks, name
        assert flops.total(made.work) == sum(sum(each["flops"].values()) for each in chunks)


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_all_of_it_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lightint_compile", "bench", "all", "--device", "cpu", "--out", str(tmp_path)]
    first = subprocess.run(command, capture_output=True, text=True, timeout=5000)
    text = (tmp_path / PAGE).read_text()
    assert first.returncode == 0, first.stdout + first.stderr + text
    assert all(f"## {each.title}" in text for each in PARTS) and text.count("| measured |") == len(PARTS)
    again = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert again.stdout.count(", kept") == len(PARTS)
