"""Milliseconds of a chunk on one rank and on several: every process of a ``torchrun`` runs the same rollout.

Each variant rolls out alone on every rank, and then with tokens dealt out among all of them. Weights are random and
the same everywhere. What a collective takes is read from a profile of one chunk: on a GPU the kernels of NCCL, and the
barriers and copies between GPUs of exchanges by copies; kernels and barriers wait for the slowest rank too. On a CPU it
is the operators that exchange. Behind how much of it a GPU works on is told apart.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightint_compile.bench.about import write
from lightint_compile.bench.breakdown import both, busy, device_spans
from lightint_compile.bench.rollout_job import UNREWRITTEN, Job, jobs_of, outside_braces
from lightint_compile.bench.rollout_subject import Subject
from lightint_compile.errors import DeviceError, LightintError, told
from lightint_compile.models.registry import TINY, world_model
from lightint_compile.models.world_model import turn_and_back

VARIANTS = ("eager", "exact", "all", "all:drift=1e9")
"""What is compared unless told otherwise: see :data:`lightint_compile.bench.rollout.VARIANTS`."""

_PATIENCE = timedelta(minutes=40)


@dataclass(frozen=True)
class Row:
    """What one variant took on so many ranks.

    Attributes:
        chunks: median milliseconds of each chunk, on the rank that took longest.
        collectives: share of the last chunk but one that collectives took.
        hidden: share of that time in which the GPU did other work as well; 0 on a CPU.
        difference: of the last chunk from that of the same variant on one rank, relative to its largest value.
        sent: bytes that a rank sends in one call of each graph, by the pass.
        rings: attention sites of each graph whose keys and values go around, as the ranks do not divide their heads.
        warm_seconds: until the first three chunks were there, and stretches recorded: making the model and compiling.
        peak_gigabytes: device memory allocated at most, 10^9 bytes.
        refused: why tokens were not dealt out.
        recorded: what was recorded as CUDA graphs.
        error: why there are no figures.
    """

    variant: str
    depth: int
    ranks: int
    chunks: tuple[float, ...] = ()
    collectives: float = 0.0
    hidden: float = 0.0
    difference: float = 0.0
    sent: tuple[int, ...] = ()
    rings: tuple[int, ...] = ()
    warm_seconds: float = 0.0
    peak_gigabytes: float = 0.0
    refused: str = ""
    recorded: str = ""
    error: str = ""

    @property
    def late(self) -> float:
        """Milliseconds of a late chunk, which has all its context: the median of the last half."""
        return statistics.median(self.chunks[len(self.chunks) // 2 :]) if self.chunks else float("nan")


def run(
    *,
    model: str = TINY,
    variants: Sequence[str] = (),
    depth: int | None = None,
    trajectory: str | None = None,
    chunks: int = 8,
    repeats: int = 3,
    json_file: Path | None = None,
) -> None:
    """Measure and print; the first rank prints.

    Args:
        variants: as of ``bench rollout``; :data:`VARIANTS` unless given.
        depth: blocks; all of the model unless given.
        trajectory: the camera path; a turn to the left and back over ``chunks`` chunks unless given.

    Raises:
        DeviceError: the processes are not started by ``torchrun``, or there are fewer GPUs than processes.
        OptionError: there is no such variant.
        InputError: there is no such model, or the path cannot be read.
    """
    device, chosen = _joined(), world_model(model)
    try:
        path = trajectory or turn_and_back(chosen.spec, chosen.spec.frames(chunks))
        blocks, count = (depth or chosen.depth,), dist.get_world_size()
        rows, known = list[Row](), dict[str, Tensor | None]()
        for variant in variants or VARIANTS:
            (job,) = jobs_of(variant, blocks, model, path, repeats, device)
            for row in _side_by_side(job, count, known):
                rows.append(row)
                if dist.get_rank() == 0:
                    _print(row)
                    if json_file is not None:
                        write(json_file, {"rows": [asdict(each) for each in rows]}, device)
        if dist.get_rank() == 0:
            print_table(rows, model)
    finally:
        dist.destroy_process_group()


def _joined() -> str:
    """The device of this process, which belongs to a group from now on."""
    if "RANK" not in os.environ:
        fix = "torchrun --nproc-per-node 4 -m lightint_compile bench ranks"
        raise DeviceError("this process is alone", where="bench ranks", why="torchrun did not start it", fix=fix)
    if not torch.cuda.is_available():
        dist.init_process_group("gloo", timeout=_PATIENCE)
        return "cpu"
    local = int(os.environ["LOCAL_RANK"])
    if local >= torch.cuda.device_count():
        why = f"{torch.cuda.device_count()} are visible"
        raise DeviceError(f"there is no GPU for process {local}", where="bench ranks", why=why)
    torch.cuda.set_device(local)
    dist.init_process_group("nccl", timeout=_PATIENCE, device_id=torch.device("cuda", local))
    return "cuda"


def _side_by_side(job: Job, count: int, known: dict[str, Tensor | None]) -> Iterator[Row]:
    """A variant on one rank, unless it is known, and where it is lightint's on all.

    Args:
        known: the latents that variants on one rank gave.
    """
    name = on_one_rank(job.variant)
    if name not in known:
        (single,) = jobs_of(name, (job.depth,), job.model, job.trajectory, job.repeats, job.device)
        alone, known[name] = _row(single, 1, None)
        yield alone
    last = known[name]
    if job.variant.partition("@")[0] not in UNREWRITTEN:
        name, colon, rest = job.variant.partition(":")
        shared = f"{name}:gpus={count}{',' if colon else ''}{rest}"
        (more,) = jobs_of(shared, (job.depth,), job.model, job.trajectory, job.repeats, job.device)
        yield _row(more, count, last, job.variant)[0]


def on_one_rank(variant: str) -> str:
    """A variant without what only several ranks have."""
    name, _, rest = variant.partition(":")
    options = [option for option in outside_braces(rest) if not option.startswith("exchanges=")]
    return f"{name}:{','.join(options)}" if options else name


def _row(job: Job, count: int, reference: Tensor | None, name: str = "") -> tuple[Row, Tensor | None]:
    row, last, start = Row(name or job.variant, job.depth, count), None, time.perf_counter()
    try:
        torch._dynamo.reset()
        subject = Subject(job)
        subject.warm_up()
        warm = time.perf_counter() - start
        if dist.get_rank() == 0:
            print(f"{row.variant} depth {row.depth} on {count}: ready after {warm:.0f} s", flush=True)
        found, last = _measured(subject, reference)
        row = Row(row.variant, row.depth, count, warm_seconds=warm, **found)
    except (LightintError, RuntimeError, torch.OutOfMemoryError) as error:
        row = Row(row.variant, row.depth, count, error=told(error))
    subject = None  # type: ignore[assignment]
    gc.collect()
    if job.device == "cuda":
        torch.cuda.empty_cache()
    dist.barrier()
    return row, last


def _measured(subject: Subject, reference: Tensor | None) -> tuple[dict[str, Any], Tensor]:
    if subject.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = [subject.timed() for _ in range(subject.job.repeats)]
    own = [statistics.median(column) for column in zip(*times, strict=True)]
    slowest = torch.tensor(own, dtype=torch.float64, device=subject.device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    share, hidden, last = _collectives(subject)
    peak = torch.cuda.max_memory_allocated() / 1e9 if subject.device.type == "cuda" else 0.0
    reference = last if reference is None else reference
    difference = float((last - reference).abs().max() / reference.abs().max().clamp_min(1e-30))
    found = {"chunks": tuple(slowest.tolist()), "collectives": share, "hidden": hidden, "difference": difference}
    return {**found, "peak_gigabytes": peak, **_remarks(subject)}, last


def _collectives(subject: Subject) -> tuple[float, float, Tensor]:
    """Of a late chunk: the share that collectives take, how much of it is hidden; and the latents of the last one."""
    rollout = iter(subject.rollout())
    count = subject.model.spec.chunks(len(subject.path))
    for _ in range(count - 2):
        next(rollout)
    kinds = torch.profiler.ProfilerActivity
    on_gpu = subject.device.type == "cuda"
    with torch.profiler.profile(activities=[kinds.CUDA if on_gpu else kinds.CPU]) as profile:
        start = subject.now()
        next(rollout)
        wall = subject.now() - start
    share, hidden = _on_device(profile, wall) if on_gpu else (_on_host(profile, wall), 0.0)
    return share, hidden, next(rollout).latents.detach().double()


def _on_device(profile: torch.profiler.profile, wall: float) -> tuple[float, float]:
    spans = device_spans(profile)
    sent, work = ([span for name, span in spans if _is_sent(name) == exchanges] for exchanges in (True, False))
    taken = busy(sent)
    return taken / 1e6 / wall, both(sent, work) / taken if taken else 0.0


def _is_sent(name: str) -> bool:
    """Whether something on a GPU belongs to a collective."""
    return any(part in name for part in ("nccl", "barrier_kernel", "Memcpy PtoP"))


def _on_host(profile: torch.profiler.profile, wall: float) -> float:
    names = ("gloo:", "c10d::", "_c10d_functional::", "lightint::exchange_rows")
    found = (each for each in profile.key_averages() if any(name in each.key for name in names))
    return sum(each.self_cpu_time_total for each in found) / 1e6 / wall


def _remarks(subject: Subject) -> dict[str, Any]:
    everything = [r for graph in subject.graphs() for r in graph.section.remarks]
    remarks = [r for r in everything if r.pass_name == "shard-sequence"]
    recorded = "; ".join(r.message for r in everything if r.rule == "cuda-graphs")
    applied = [r for r in remarks if "bytes_sent" in r.args]
    sent, rings = (tuple(int(r.args[name]) for r in applied) for name in ("bytes_sent", "rings"))
    refused = "; ".join(dict.fromkeys(r.message for r in remarks if r not in applied))
    return {"sent": sent, "rings": rings, "refused": refused, "recorded": recorded}


def _print(row: Row) -> None:
    """A row as soon as it is measured, so that nothing is lost when a later one is stopped."""
    chunks = " ".join(f"{chunk:.1f}" for chunk in row.chunks)
    exchanged = f"collectives {row.collectives:.0%}, {row.hidden:.0%} hidden"
    said = row.error or f"{row.late:.1f} ms a late chunk, {exchanged}; chunks ms {chunks}"
    print(f"{row.variant} depth {row.depth} on {row.ranks}: {said} {row.refused} {row.recorded}", flush=True)


def print_table(rows: Sequence[Row], model: str) -> None:
    """One row a variant and number of ranks."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Milliseconds of a late chunk of {model}, {rows[0].depth} blocks")
    figures = ("ms", "vs one rank", "collectives", "hidden", "sent MB", "rings", "difference", "warm s", "peak GB")
    for column in ("variant", "ranks", *figures):
        table.add_column(column, justify="left" if column == "variant" else "right")
    alone = {row.variant: row.late for row in rows if row.ranks == 1}
    for row in rows:
        if row.error:
            table.add_row(row.variant, str(row.ranks), row.error)
            continue
        sent, rings = f"{max(row.sent) / 1e6:.1f}" if row.sent else "-", str(max(row.rings, default="-"))
        faster = f"{alone[on_one_rank(row.variant)] / row.late:.2f}x"
        exchanged = (f"{row.collectives:.0%}", f"{row.hidden:.0%}", sent, rings)
        cells = (f"{row.late:.1f}", faster, *exchanged, f"{row.difference:.1e}")
        table.add_row(row.variant, str(row.ranks), *cells, f"{row.warm_seconds:.0f}", f"{row.peak_gigabytes:.1f}")
    Console(width=132).print(table)
