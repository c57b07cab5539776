"""AOTInductor packages beside the compiled driver: ``python tests/benchmarks/packages [--cells vit exact]``.

First plain attention alone, by each kernel that PyTorch has for it: where the default fails in a package, those that
work are used in the others. Then every package is written, all at once, and timed one after another, each
in a process of its own: one that dies is a line. On a CUDA device at real size unless told otherwise.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import minimal  # noqa: E402
import subjects  # noqa: E402

START = time.perf_counter()


def main() -> None:
    """Run one part, or all of them as processes."""
    given = _arguments()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.part:
        _part(given, *given.part.split(":"))
        return
    say(subjects.machine(given.device))
    given.attention = given.attention or _working_kernels(given)
    if "default" not in given.attention:
        say(f"attention of every package below is by the kernels that work: {', '.join(given.attention)}")
    waiting = [cell for cell in given.cells if not subjects.package(given, cell).exists()]
    together([start(given, f"write:{cell}") for cell in waiting])
    for cell in given.cells:
        if subjects.package(given, cell).exists():
            together([start(given, f"measure:{cell}")])
        else:
            say(f"{cell}: there is no package to time")


def _part(given: argparse.Namespace, what: str, which: str) -> None:
    import faulthandler

    faulthandler.enable()
    if what == "minimal":
        minimal.run(given.device, which)
    elif what == "write":
        import writing

        writing.write(given, which)
    else:
        import measuring

        measuring.measure(given, which)


def _working_kernels(given: argparse.Namespace) -> list[str]:
    """Plain attention in packages, by every kernel: the default if it runs, else all that do."""
    say("plain attention in a package, " + minimal.CASE)
    names = [*minimal.KERNELS]
    ended = together([start(given, f"minimal:{name}") for name in names])
    works = [name for name, code in zip(names, ended, strict=True) if code == 0 and name != "none"]
    if not works:
        say("no kernel of attention works in a package here; the cells below are tried all the same")
    return ["default"] if not works or "default" in works else works


class Part:
    """A process that runs one part; its lines are printed as they come."""

    def __init__(self, name: str, command: Sequence[str], limit: float) -> None:
        self.name, self.limit = name, limit
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self.errors: list[str] = []
        self._readers = [threading.Thread(target=self._print), threading.Thread(target=self._keep)]
        for reader in self._readers:
            reader.start()

    def end(self) -> int:
        """Wait, and say how it ended unless it ended well."""
        try:
            code = self.process.wait(self.limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
            self.errors.append(f"it took longer than {self.limit:.0f} s")
        for reader in self._readers:
            reader.join()
        if code:
            say(f"{self.name}: {f'died of signal {-code}' if code < 0 else 'failed'}: {self._why()}")
        return code

    def _why(self) -> str:
        """The last line of an error, or of a stack that a signal left the place where it was."""
        at = [line.strip() for line in self.errors if line.strip().startswith("File ")]
        dead = any(line.startswith("Fatal Python error") for line in self.errors)
        last = [line.strip() for line in self.errors if line.strip()][-1:]
        return " < ".join(at[:4]) if dead else " ".join(last)[:600]

    def _print(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            say(f"{self.name}: {line.rstrip()}")

    def _keep(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)


def start(given: argparse.Namespace, part: str) -> Part:
    """Start a part with the arguments of this program."""
    options = ["--device", given.device, "--size", given.size, "--folder", str(given.folder)]
    options += ["--blocks", str(given.blocks), "--context", str(given.context), "--chunks", str(given.chunks)]
    options += ["--rounds", str(given.rounds), "--attention", *(given.attention or ["default"])]
    return Part(part, [sys.executable, str(HERE), "--part", part, *options], given.limit)


def together(parts: Sequence[Part]) -> list[int]:
    """How each ended."""
    return [part.end() for part in parts]


def say(line: str) -> None:
    """Print a line with the seconds since the start, at once."""
    sys.stdout.write(f"{time.perf_counter() - START:6.0f} s  {line}\n")
    sys.stdout.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="packages", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="8b-480p", choices=["8b-480p", "demo", "tiny"])
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--context", type=int, default=12, help="frames of the history in a call")
    parser.add_argument("--chunks", type=int, default=8, help="of the rollout")
    parser.add_argument("--rounds", type=int, default=15, help="timed calls of every way")
    parser.add_argument("--cells", nargs="*", default=[*subjects.CELLS], choices=subjects.CELLS)
    parser.add_argument("--attention", nargs="*", choices=minimal.KERNELS, help="kernels of packages; those that work")
    parser.add_argument("--limit", type=float, default=540, help="seconds that a part may take")
    parser.add_argument("--folder", type=Path, default=Path("out/packages"), help="packages that are here stay")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
