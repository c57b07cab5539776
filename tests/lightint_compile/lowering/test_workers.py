"""Processes that compile regions: whatever becomes of one, the regions are compiled, and no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx as fx
from quick_variants import mostly_slow
from region_graphs import region
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config
from torch._inductor.utils import fresh_cache

import lightint_compile
from lightint_compile.compiled import CompiledGraph
from lightint_compile.lowering.region import Leaf, inductor_compiler
from lightint_compile.lowering.workers import asked, pool, sharing
from lightint_compile.lowering.workers.asked import COUNT, workers_for
from lightint_compile.lowering.workers.pool import Artifact, Worker, WorkerLostError, Workers
from lightint_compile.lowering.workers.rules import Rules
from lightint_compile.lowering.workers.sharing import compile_all
from lightint_compile.options import LightintOptions

LONG = 60.0
"""Seconds in which what is to happen has happened on the busiest machine."""

SAYS = "import socket, struct, sys, time; s = socket.socket(fileno=int(sys.argv[1]))\n" + (
    "def say(text): s.sendall(struct.pack('!Q', len(text)) + text)\n"
)
READY = SAYS + "say(b'{\"ready\": true}'); s.recv(1)\n"
"""The start of a worker that gets ready, and takes the first of a region."""

FAILING = {
    "does not start": "raise SystemExit(1)",
    "never gets ready": SAYS + "time.sleep(1000)",
    "says that it is not ready": SAYS + "say(b'{}'); time.sleep(1000)",
    "dies": READY + "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "hangs": READY + "time.sleep(1000)",
    "cannot": READY + 'say(b\'{"error": "it is too hard"}\')',
    "has other settings": READY + 'say(b\'{"differs": "a switch"}\'); time.sleep(1000)',
    "answers no message": READY + "s.sendall(b'!' * 100); time.sleep(1000)",
    "answers no JSON": READY + "say(b'\\xff{'); time.sleep(1000)",
    "answers something else": READY + "say(b'{\"guard\": 7}'); time.sleep(1000)",
    "answers with a list": READY + "say(b'[]'); time.sleep(1000)",
    "gives no artifact": READY + "say(b'{\"guard\": null}')",
    "gives garbage": READY + "say(b'{\"guard\": null}'); say(b'garbage')",
}
LIKE_ANOTHER = {"answers no JSON", "answers with a list", "gives no artifact", "says that it is not ready"}
"""Ways that others stand for by default."""

GETS_ONE = {name for name, program in FAILING.items() if program.startswith(READY)}


def regions() -> dict[str, fx.GraphModule]:
    """Three that need no compiler of kernels."""
    return {
        "small": region(lambda x: (torch.mm(x, x),), torch.randn(4, 4)),
        "middle": region(lambda x: (torch.mm(torch.mm(x, x), x),), torch.randn(4, 4)),
        "large": region(lambda x: (torch.mm(torch.mm(torch.mm(x, x), x), x),), torch.randn(4, 4)),
    }


def leaves_of(graphs: dict[str, fx.GraphModule]) -> dict[str, Leaf]:
    def makes(graph: fx.GraphModule) -> Callable[[], fx.GraphModule]:
        return lambda: graph

    return {name: Leaf(name, makes(graph), inductor_compiler({})) for name, graph in graphs.items()}


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def comes(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + LONG
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


def waiting_for_a_worker(monkeypatch: pytest.MonkeyPatch, jobs: int = 1) -> None:
    """This process begins once workers have taken so many jobs."""
    least, compile_region, taken = sharing._least, Worker.compile, list[Worker]()

    def told(worker: Worker, content: bytes) -> Any:
        taken.append(worker)
        return compile_region(worker, content)

    def patient(waiting: deque[Any]) -> Any:
        assert comes(lambda: len(taken) >= jobs)
        return least(waiting)

    monkeypatch.setattr(Worker, "compile", told)
    monkeypatch.setattr(sharing, "_least", patient)


def impatient_once_it_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_region = Worker.compile

    def impatient(worker: Worker, content: bytes) -> Any:
        monkeypatch.setattr(pool, "PATIENCE", 0.5)
        return compile_region(worker, content)

    monkeypatch.setattr(Worker, "compile", impatient)


@pytest.fixture(autouse=True)
def told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other tests of this process have told Inductor: test_worker_rules.py is about that."""
    monkeypatch.setattr(Rules, "now", lambda: Rules(*[frozenset()] * 4))


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch._dynamo.reset()
    monkeypatch.setattr(sharing, "WAIT", 0.2)
    threads = set(threading.enumerate())
    with fresh_cache(), torch.no_grad():
        yield
    assert not [thread for thread in set(threading.enumerate()) - threads if "_serve" in thread.name]


def assert_right(leaves: dict[str, Leaf], graphs: dict[str, fx.GraphModule]) -> None:
    x = torch.randn(4, 4)
    for name, leaf in leaves.items():
        assert leaf.compilations == 1
        torch.testing.assert_close(list(leaf(x)), list(graphs[name](x)))


@pytest.mark.parametrize("way", mostly_slow(FAILING, quick=FAILING.keys() - LIKE_ANOTHER))
def test_a_worker_that_fails_is_nobodys_loss(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_RUN", FAILING[way])
    monkeypatch.setattr(pool, "PATIENCE", LONG)
    monkeypatch.setattr(pool, "LEAVE", 0.5)
    if way == "hangs":
        impatient_once_it_is_ready(monkeypatch)
    if way in GETS_ONE:
        waiting_for_a_worker(monkeypatch)
    graphs = regions()
    leaves, workers = leaves_of(graphs), Workers(1, 1)
    assert compile_all(leaves, graphs, {}, workers) == 0
    assert comes(lambda: not is_running(workers.all[0].pid))
    assert_right(leaves, graphs)


@pytest.mark.parametrize(
    "program", [FAILING["cannot"], pytest.param(pool._RUN, marks=pytest.mark.slow)], ids=["cannot", "can"]
)
def test_what_fails_everywhere_is_the_error_of_this_process(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_RUN", program)

    def fails(*_: Any) -> Any:
        raise ZeroDivisionError

    graphs = regions()
    leaves = {name: Leaf(name, lambda: graphs["small"], fails) for name in graphs}
    workers = Workers(2, 1)
    with pytest.raises(ZeroDivisionError):
        compile_all(leaves, graphs, {}, workers)
    assert comes(lambda: not any(is_running(worker.pid) for worker in workers.all))


def test_a_worker_without_a_thread_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(pool, "_RUN", READY)
    graphs = regions()
    leaves, workers = leaves_of(graphs), Workers(2, 1)
    monkeypatch.setattr(threading.Thread, "start", fails)
    assert compile_all(leaves, graphs, {}, workers) == 0
    assert not any(worker.close.alive for worker in workers.all)
    monkeypatch.undo()
    for worker in workers.all:
        worker._process.wait()
    assert_right(leaves, graphs)


def test_a_worker_finishes_what_it_does_before_it_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is killed while it writes leaves half of a file in a cache that others read."""
    file = tmp_path / "written"
    monkeypatch.setattr(pool, "_RUN", SAYS + f"say(b'{{}}'); time.sleep(1); open({str(file)!r}, 'w').write('all')")
    worker = Worker(1, -1)
    with pytest.raises(WorkerLostError):
        worker.wait_until_ready()
    worker.close()
    assert comes(lambda: not is_running(worker.pid))
    assert file.read_text() == "all"


def test_processes_that_cannot_be_started_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    graphs = regions()
    leaves, workers = leaves_of(graphs), Workers(2, 1)
    assert workers.all == []
    assert compile_all(leaves, graphs, {}, workers) == 0
    assert_right(leaves, graphs)


@pytest.mark.slow
def test_two_workers_share_regions_with_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting_for_a_worker(monkeypatch, jobs=2)
    graphs = regions()
    leaves, workers = leaves_of(graphs), Workers(2, 1)
    assert compile_all(leaves, graphs, {}, workers) >= 2
    assert comes(lambda: not any(is_running(worker.pid) for worker in workers.all))
    assert_right(leaves, graphs)


class Some:
    """Stands for workers of which so many run."""

    def __init__(self, running: int) -> None:
        self.running = [None] * running


def here(waiting: int, running: int) -> Any:
    """This process with so many regions waiting, and workers running."""
    leaves = leaves_of({"small": regions()["small"]})
    return sharing._Here(leaves, deque([None] * waiting), sharing._Answers(), Some(running))


@pytest.mark.parametrize(("waiting", "running"), [(3, 2), (0, 2), (1, 0)])
def test_this_process_waits_for_nobody_where_much_or_nothing_is_left(
    waiting: int, running: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "WAIT", LONG)
    start = time.monotonic()
    assert not here(waiting, running).answers_soon()
    assert time.monotonic() < start + LONG


def test_this_process_waits_where_each_worker_has_at_most_one_more_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    some = here(2, 2)
    assert not some.answers_soon()  # nothing comes: it has waited in vain
    monkeypatch.setattr(sharing, "WAIT", LONG)
    later = threading.Timer(0.1, some.answers.put, [(None, None)])
    later.start()
    assert some.answers_soon()
    later.join()
    some.answers.get()
    gone = threading.Timer(0.1, some.workers.running.clear)
    gone.start()
    assert not some.answers_soon()
    gone.join()


def test_this_process_does_not_wait_once_it_has_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "WAIT", LONG)
    some, start = here(2, 2), time.monotonic()
    some.compile("small")
    assert not some.answers_soon()
    assert time.monotonic() < start + LONG


SHADOWED = ("platform", "json", "signal")
"""Modules of Python's own that the user below has others of."""

PROGRAM = """
import sys, time, torch
from torch.fx.experimental.proxy_tensor import make_fx
from lightint_compile.lowering.workers.pool import Artifact, Worker
from lightint_compile.lowering.workers.sharing import _jobs
torch.compile(lambda x: x @ x)(torch.ones(4, 4))
region = make_fx(lambda x: (torch.mm(x, x),), tracing_mode="fake")(torch.ones(4, 4))
sys.path[:0] = sys.argv[1:]
worker = Worker(1, -1)
worker.wait_until_ready()
(job,) = _jobs({"region": region}, {})
print(worker.pid, type(worker.compile(job.content)).__name__, flush=True)
time.sleep(1000)
"""
"""Of a user: it compiles, and has a worker compile. It has no guard around its start."""


@dataclass(frozen=True)
class Known:
    """A worker of a program that was killed: its number, what it gave back, and whether it ran a user's module."""

    pid: int
    given: str
    ran: bool


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    folder = tmp_path_factory.mktemp("user")
    ran = folder / "ran"
    for name in SHADOWED:
        (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'w').close(); raise SystemExit(1)")
    command = [sys.executable, "-P", "-c", PROGRAM, "", str(folder)]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        said = process.stdout.readline().split()
    assert len(said) == 2, "it failed: see standard error"
    pid, given = int(said[0]), said[1]
    assert is_running(pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return Known(pid, given, ran.exists())


def test_a_worker_ends_with_a_process_that_is_killed(known: Known) -> None:
    """The program has no guard around its start: a worker does not run it again."""
    assert comes(lambda: not is_running(known.pid))


def test_a_worker_runs_no_module_of_the_users(known: Known) -> None:
    """Neither of a folder that was added in front of Python's own, nor of the working folder."""
    assert not known.ran


def test_a_worker_has_the_rules_of_a_process_that_has_compiled_before(known: Known) -> None:
    assert known.given == Artifact.__name__


def test_a_process_that_was_forked_meanwhile_ends_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_RUN", READY)
    worker = Worker(1, -1)
    child = os.fork()
    if child == 0:
        worker.close()
        os._exit(0)
    os.waitpid(child, 0)
    worker.wait_until_ready()
    worker.close()
    assert comes(lambda: not is_running(worker.pid))
    with pytest.raises(WorkerLostError):
        worker.compile(b"")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.repeat_interleave(16, 0)
        for block in self.blocks:
            x = block(x)
        return self.head(x).softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_a_program_is_the_one_that_is_compiled_without(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Model().eval().requires_grad_(False).to(dtype)
    inputs = [torch.randn(frames, 8, dtype=dtype) for frames in (3, 5, 2)]
    torch._dynamo.maybe_mark_dynamic(inputs[0], 0)
    results, found = [], []
    monkeypatch.setattr(asked, "FEWEST_NODES", 1)
    waiting_for_a_worker(monkeypatch)
    for count in ("0", "1"):
        monkeypatch.setenv(COUNT, count)
        torch._dynamo.reset()
        with fresh_cache():
            compiled = torch.compile(model, backend="lightint", options={"preset": "exact", "strict": True})
            results.append([compiled(x) for x in inputs])
            found += [graph.section.measurements["regions compiled in workers"] for graph in CompiledGraph.of(model)]
            report = lightint_compile.report(compiled)
            assert f"regions compiled in workers {found[-1]}" in " ".join(str(report).split())
    assert found[0] == 0
    assert found[1] >= 1
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def wanted(options: dict[str, Any] | None = None, config: dict[str, Any] | None = None, monkeypatch: Any = None) -> int:
    """How many workers there would be for a graph of some nodes."""
    graph_module = region(lambda x: (x + 1,), torch.randn(4))
    with workers_for(graph_module, LightintOptions.from_mapping(options or {}), config or {}) as workers:
        return 0 if workers is None else len(workers.all)


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(asked, "FEWEST_NODES", 1)
    monkeypatch.setattr(pool, "_RUN", "pass")
    monkeypatch.delenv(COUNT, raising=False)
    with inductor_config.patch(compile_threads=6):
        yield


@pytest.mark.usefixtures("many_cores")
def test_there_are_workers_where_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wanted() == 3
    monkeypatch.setenv(COUNT, "1")
    assert wanted() == 1
    monkeypatch.setenv(COUNT, "many")
    assert wanted() == 3
    monkeypatch.setenv(COUNT, "0")
    assert wanted() == 0
    monkeypatch.delenv(COUNT)
    with inductor_config.patch(compile_threads=3):
        assert wanted() == 0
    with inductor_config.patch(compile_threads=1):
        assert wanted() == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert wanted() == 0
    with inductor_config.patch(compile_threads=64):
        assert wanted() == 8


@pytest.mark.usefixtures("many_cores")
def test_there_are_none_where_they_would_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wanted({"delegate": "eager"}) == 0
    assert wanted(config={"max_autotune": True}) == 0
    for patch in (
        inductor_config.patch(coordinate_descent_tuning=True),
        inductor_config.patch(force_disable_caches=True),
        inductor_config.patch(fx_graph_cache=False),
        functorch_config.patch(enable_autograd_cache=False),
    ):
        with patch:
            assert wanted() == 0
    assert wanted() == 3
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert wanted() == 0
    monkeypatch.delattr(sys, "frozen")
    with monkeypatch.context() as context:
        context.setattr(asked, "FEWEST_NODES", 1000)
        assert wanted() == 0
    with monkeypatch.context() as context:  # caches that are read only
        context.setattr(asked.os, "access", lambda *_: False)
        assert wanted() == 0
    with monkeypatch.context() as context:  # a driver that fails
        context.setattr(asked, "_gpu_of", lambda *_: 1 / 0)
        assert wanted() == 0
    assert wanted() == 3


@pytest.mark.slow
def test_a_worker_of_a_process_without_standard_input_and_output(tmp_path: Path) -> None:
    program = (
        "import os\nos.closerange(0, 3)\n"
        "from lightint_compile.lowering.workers.pool import Worker\n"
        f"worker = Worker(1, -1); worker.wait_until_ready(); open({str(tmp_path / 'ready')!r}, 'w').close()"
    )
    subprocess.run([sys.executable, "-c", program], timeout=2 * LONG, check=False)
    assert (tmp_path / "ready").exists()
