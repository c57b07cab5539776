"""A part as a process of its own: its output in a file, and an end to it after so many seconds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightint_compile.errors import StateError
from lightint_compile.kernels.cost import kept_folder
from lightint_compile.torch_compat import cache_dir

_LOOK = 0.5
"""Seconds between two looks at what a part prints."""

_GRACE = 5.0
"""Seconds in which a part that is told to end may do so."""

_TAIL = 8192
"""Bytes of a log in which its last line is looked for."""

_MACHINE = "import json, sys; from lightint_compile.bench.about import machine; print(json.dumps(machine(sys.argv[1])))"


def environment(device: str) -> dict[str, str]:
    """Variables of a part: on the CPU it sees no GPU."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    return {**os.environ, "COLUMNS": "130", "PYTHONUNBUFFERED": "1", **hidden}


def caches_in(folder: str) -> dict[str, str]:
    """Variables for caches in an empty folder, so that every start is cold; measured rates are taken along."""
    kept, new = kept_folder(), Path(folder) / "inductor"
    if kept.exists():
        shutil.copytree(kept, new / kept.relative_to(cache_dir()))
    return {"TORCHINDUCTOR_CACHE_DIR": str(new), "TRITON_CACHE_DIR": f"{folder}/triton"}


def machine_of(device: str) -> dict[str, Any]:
    """What a part finds: device and versions. It is asked for in a process, which leaves no memory taken on a GPU.

    Raises:
        StateError: the process failed.
    """
    call = [sys.executable, "-c", _MACHINE, device]
    done = subprocess.run(call, capture_output=True, text=True, env=environment(device))
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise StateError("what this machine has cannot be told", where="bench all", why=why, fix="see lightint doctor")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def told_to_stop() -> Iterator[None]:
    """Inside, a signal to end raises SystemExit, so that no part outlives the command; in the main thread alone."""

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP) if main}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(call: Sequence[str], log: Path, seconds: float, device: str, tell: Callable[[str], None]) -> str:
    """Run a command until it ends or ``seconds`` are over; why it did not come to its end, or nothing.

    What it compiles is cached in a folder of its own, which is empty at first and gone in the end.

    Args:
        log: where its output goes, errors included.
        tell: is told the last line of the output now and then.
    """
    with log.open("w", encoding="utf-8") as output, tempfile.TemporaryDirectory() as caches:
        process = subprocess.Popen(
            call,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environment(device), **caches_in(caches)},
            start_new_session=True,
        )
        try:
            ended = _wait(process, time.monotonic() + seconds, lambda: tell(last_line(log)))
        finally:
            _end(process)
    said = last_line(log)
    if ended and process.returncode >= 0:
        return (said or f"exit code {process.returncode}") if process.returncode else ""
    what = f"killed by {signal.Signals(-process.returncode).name}" if ended else f"stopped after {seconds:g} s"
    return f"{what}; its last line: {said}" if said else what


def _wait(process: subprocess.Popen[bytes], deadline: float, look: Callable[[], None]) -> bool:
    """Whether it ends before the deadline."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            process.wait(min(_LOOK, left))
            return True
        except subprocess.TimeoutExpired:
            look()
    return process.poll() is not None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that runs still, and those that it started, which are in a group of their own."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        lines = file.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if any(map(str.isalnum, line))), "")


def call_of(arguments: Sequence[str]) -> list[str]:
    """``lightint`` with arguments, by the interpreter that runs this."""
    return [sys.executable, "-m", "lightint_compile", *arguments]
