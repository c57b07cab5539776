"""Options that name checkouts, and one table (and file) of counts at the end of a run over the peers' suites.

Write ``--diffusers=DIR``, with the sign: pytest knows the option only later, and takes a path of its own for tests.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.table import Table

from lightint_compile import __version__

COUNTS: pytest.StashKey[dict[str, collections.Counter[str]]] = pytest.StashKey()
DETAILS: pytest.StashKey[list[dict[str, str]]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("peers")
    group.addoption("--pytorch", type=Path, help="a checkout of pytorch, for its attention patterns")
    group.addoption("--diffusers", type=Path, help="a checkout of diffusers, for its tests of compiled models")
    group.addoption(
        "--worlds", type=Path, help="a folder of checkouts of world models, named as test_world_models says"
    )
    group.addoption("--worlds-table", type=Path, help="where to write the table of world models, as Markdown")
    group.addoption("--samples", type=int, default=3, help="samples of each operator of PyTorch's database")
    group.addoption("--counts", type=Path, help="where to write the counts and all that is not right, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[COUNTS] = collections.defaultdict(collections.Counter)
    config.stash[DETAILS] = []


class Tally:
    """Counts outcomes by suite; keeps the details of those that are not plainly right."""

    def __init__(self, config: pytest.Config) -> None:
        self._counts, self._details = config.stash[COUNTS], config.stash[DETAILS]

    def add(self, suite: str, kind: str, name: str = "", detail: str = "", count: int = 1) -> None:
        self._counts[suite][kind] += count
        if detail:
            self._details.append({"suite": suite, "kind": kind, "name": name, "detail": detail})


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    return Tally(request.config)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small operators are no work for a pool, and a fixed count keeps the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch._dynamo.reset()


def pytest_terminal_summary(config: pytest.Config) -> None:
    counts = config.stash[COUNTS]
    if not counts:
        return
    table = Table("suite", "outcome", "count", title=f"lightint {__version__} on torch {torch.__version__}")
    for suite, kinds in sorted(counts.items()):
        for kind, count in kinds.most_common():
            table.add_row(suite, kind, str(count))
    Console().print(table)
    if path := config.getoption("--counts"):
        data = {"lightint": __version__, "torch": torch.__version__, "counts": counts, "details": config.stash[DETAILS]}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=1))
