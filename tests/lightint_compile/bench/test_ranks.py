"""bench ranks: what it prints, and a run of two processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightint_compile.bench.ranks import Row, on_one_rank, print_table
from lightint_compile.errors import DeviceError


def test_a_process_alone_is_an_error_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightint_compile.bench.ranks import run

    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(DeviceError, match="this process is alone") as raised:
        run()
    assert "torchrun --nproc-per-node 4 -m lightint_compile bench ranks" in str(raised.value)


def test_the_table_compares_with_one_rank(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        Row("exact", 6, 1, chunks=(5.0, 8.0, 10.0, 10.0)),
        Row("exact", 6, 4, chunks=(5.0, 4.0, 4.0, 4.0), collectives=0.25, hidden=0.75, sent=(2_000_000,), rings=(37,)),
        Row('exact:exchanges="copies"', 6, 4, chunks=(5.0, 3.0, 2.5, 2.5)),
        Row("all", 6, 4, error="no memory is left"),
    ]
    print_table(rows, "worldplay:8b-480p")
    shown = capsys.readouterr().out
    assert (
        "2.50x" in shown
        and "4.00x" in shown
        and "25%" in shown
        and "75%" in shown
        and "2.0" in shown
        and "37" in shown
        and "no memory" in shown
    )


@pytest.mark.parametrize(
    ("variant", "alone"),
    [
        ("exact", "exact"),
        ('exact:exchanges="copies"', "exact"),
        ('all:drift=1e9,exchanges="copies"', "all:drift=1e9"),
        ('all:budget={"a": 1, "b": 2},age=4', 'all:budget={"a": 1, "b": 2},age=4'),
    ],
)
def test_a_variant_runs_alone_without_what_ranks_have(variant: str, alone: str) -> None:
    assert on_one_rank(variant) == alone


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_measure(tmp_path: Path, count: int) -> None:
    """Two heads: two ranks divide them, four do not."""
    table = tmp_path / "ranks.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += ["-m", "lightint_compile", "bench", "ranks", "--depth", "1", "--chunks", "4", "--repeats", "1"]
    variants = ["--variant", "exact", "--variant", 'exact:exchanges="copies"']
    subprocess.run([*command, *variants, "--json", str(table)], check=True, timeout=590)
    alone, shared, copied = json.loads(table.read_text())["rows"]
    assert not copied["error"] and copied["difference"] < 1e-4 and copied["collectives"] > 0
    assert (alone["ranks"], shared["ranks"]) == (1, count) and not alone["error"] and not shared["error"]
    assert len(alone["chunks"]) == len(shared["chunks"]) == 4 and shared["difference"] < 1e-4
    assert (
        shared["collectives"] > 0
        and shared["hidden"] == 0
        and shared["sent"]
        and (max(shared["rings"]) > 0) == (count == 4)
    )
