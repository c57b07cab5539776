"""The command line: what each command prints, and one line for every error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightint_compile.cli import main
from lightint_compile.cli.targets import resolve

FACTORY = """
import torch

def call():
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()).eval(), (torch.randn(4, 8),), {}

def compiled():
    module, args, kwargs = call()
    return torch.compile(module, backend="eager"), args, kwargs

def nothing():
    return 3
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "lightint_test_project.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "lightint_test_project", raising=False)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lightint", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_help_is_quick_and_lists_the_commands() -> None:
    code = "import sys, lightint_compile.cli; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "lightint_compile", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("demo", "explain", "export", "decisions", "passes", "options", "doctor", "bench"):
        assert command in done.stdout


def test_explain_prints_the_report_and_writes_it_as_data(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = "lightint_test_project:call"
    arguments = ["explain", target, "-o", "passes=outline-regions", "-d", "input=0", "--json", "report.json"]
    arguments += ["--html", "report.html"]
    assert run(monkeypatch, *arguments) == 0
    text = capsys.readouterr().out
    assert "lightint · Sequential" in text and "lightint explain lightint_test_project:call" in text
    assert json.loads((project / "report.json").read_text())["schema"] == 1
    assert "<h1>lightint" in (project / "report.html").read_text()


def test_export_writes_a_checked_file(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "export", "lightint_test_project:call", "m.pt2", "-o", "passes=") == 0
    assert "checked in a fresh process" in capsys.readouterr().out
    assert (project / "m.pt2").exists()


def test_passes_lists_every_pass_and_preset(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lightint_compile.options.presets import PRESETS
    from lightint_compile.passes.registry import PASSES

    assert run(monkeypatch, "passes") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*PASSES, *PRESETS))


def test_options_lists_every_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lightint_compile.options import LightintOptions
    from lightint_compile.options.table import markdown, table_of

    assert run(monkeypatch, "options") == 0
    printed = capsys.readouterr().out
    assert all(row.name in printed for row in table_of(LightintOptions))
    assert run(monkeypatch, "options", "--markdown") == 0
    assert capsys.readouterr().out.strip() == markdown(LightintOptions)


def test_doctor_says_how_things_stand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "doctor") == 0
    printed = capsys.readouterr().out
    assert torch.__version__ in printed and "backend" in printed


def test_doctor_measures_attention_when_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lightint_compile.kernels import cost

    rates = cost.Rates(5.0, 8.0, 20.0, 4.0, 100.0, 1)
    asked = []
    monkeypatch.setattr(cost, "measure", lambda device: asked.append(device) or rates)
    assert run(monkeypatch, "doctor") == 0 and not asked
    assert "attention" in capsys.readouterr().out
    assert run(monkeypatch, "doctor", "--measure") == 0 and len(asked) == 1
    line = capsys.readouterr().out.splitlines()[-1]
    assert "dense 8 and sparse 4 TFLOP/s" in line and "at density 0.3" in line


def test_doctor_fails_when_something_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [])
    assert run(monkeypatch, "doctor") == 1


def test_doctor_mends_what_it_can_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightint_compile.cli.doctor import State, examine

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "no-such-compiler")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    findings = {finding.subject: finding for finding in examine()}
    assert findings["C++ compiler"].state is State.ABSENT and 'delegate="eager"' in findings["C++ compiler"].detail
    assert "pip install triton" in findings["triton"].detail
    assert not any(finding.broken for finding in findings.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["explain", "worldplay:tinny"], "did you mean 'worldplay:tiny'?"),
        (["explain", "nonsense"], "not of the form package.module:factory"),
        (["explain", "no_such_package_at_all:call"], "cannot be imported"),
        (["explain", "lightint_test_project:cal"], "did you mean 'call'?"),
        (["explain", "lightint_test_project:nothing"], "return (module, args, kwargs)"),
        (["explain", "lightint_test_project:call", "-p", "exakt"], "did you mean 'exact'?"),
        (["explain", "lightint_test_project:call", "-o", "density"], "'density' is not KEY=VALUE"),
        (["explain", "lightint_test_project:call", "-o", "densty=0.3"], "did you mean 'density'?"),
        (["explain", "lightint_test_project:call", "-d", "input"], "is not ARGUMENT=DIMENSION"),
        (["export", "lightint_test_project:call", "m.trt"], "known: .pt2"),
        (["bisect", "lightint_test_project:call", "--chunks", "2"], "how to roll a factory's module out is not known"),
        (["bench", "kernels", "--device", "gpu"], "'gpu' is no device"),
        (["demo", "--chunks", "2"], "2 chunks are too few"),
        (["demo", "--preset", "sprase"], "did you mean 'sparse'?"),
        (["demo", "--chunks", "two"], "Invalid value for '--chunks'"),
        (["explain"], "issing argument"),
        (["explian", "worldplay:tiny"], "No such command 'explian'"),
        (["export", "lightint_test_project:call", "m.pt2", "-d", "inputs=0"], "did you mean 'input'?"),
    ],
)
def test_an_error_is_one_line_on_stderr_and_exit_code_2(
    arguments: list[str],
    said: str,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("lightint: ") and captured.err.count("\n") == 1
    assert said in captured.err and "Traceback" not in captured.err + captured.out


@pytest.mark.slow
@pytest.mark.parametrize(("model", "output"), [("worldplay:tiny", 3), ("matrix-game:tiny", 1)])
def test_bisection_rolls_a_model_out_chunk_by_chunk(
    model: str, output: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "bisect", model, "--preset", "context", "--chunks", "4") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("good  as captured") and f"from output {output} on" in lines[1]
    assert lines[-1].startswith("adaptive-context makes the difference (graph 2 of 2)")


def test_what_a_factory_compiled_is_taken_as_it_was_before(project: Path) -> None:
    assert type(resolve("lightint_test_project:compiled").module) is torch.nn.Sequential


def test_the_8b_program_is_a_target_without_weights() -> None:
    subject = resolve("worldplay:8b-480p")
    assert all(parameter.is_meta for parameter in subject.module.parameters())
    assert sum(parameter.numel() for parameter in subject.module.parameters()) > 8e9


@pytest.mark.parametrize(("kernel", "state"), [("hopper", "ok"), ("portable", "slower"), ("reference", "absent")])
def test_doctor_names_the_kernel_that_runs_and_why(kernel: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an sm_90 device; the rates that are told are those of that kernel."""
    from lightint_compile.cli import doctor
    from lightint_compile.kernels import cost
    from lightint_compile.kernels.dispatch import Choice

    asked = []
    rates = cost.Rates(5.0, 8.0, 20.0, 4.0, 100.0, 1)
    monkeypatch.setattr(doctor, "_best_kernel", lambda: (torch.device("cuda", 0), Choice(kernel, "because of Triton")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(cost, "rates_of", lambda device, implementation: asked.append(implementation) or rates)
    monkeypatch.setattr(cost, "origin_of", lambda device, implementation: cost.Origin.KNOWN)
    first, *rest = doctor._attention()
    assert first.state == state and "because of Triton" in first.detail
    assert asked == ([] if kernel == "reference" else [kernel]) and len(rest) == len(asked)


def test_doctor_calls_a_torch_beyond_the_tested_ones_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightint_compile import torch_compat, torch_private
    from lightint_compile.cli.doctor import State, examine

    for version, state in (
        ((2, 10), State.BROKEN),
        ((2, 11), State.GOOD),
        ((2, 14), State.GOOD),
        ((2, 15), State.BROKEN),
    ):
        fits = torch_compat.is_supported(version)
        assert fits is (state is State.GOOD)
    monkeypatch.setattr(torch_compat, "is_supported", lambda: False)
    monkeypatch.setattr(torch_private, "missing", lambda: ["torch._C.gone"])
    (finding,) = [finding for finding in examine() if finding.subject == "torch"]
    assert finding.broken and "outside of 2.11 to 2.14" in finding.detail and "torch._C.gone" in finding.detail
