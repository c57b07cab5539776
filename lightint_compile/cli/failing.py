"""Errors of a command, ours and the target's: one line on stderr and exit code 2."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from lightint_compile.errors import InputError, LightintError, one_line, told, user_line

log = logging.getLogger(__name__)

_HELP = "NoArgsIsHelpError"
"""What typer raises for a group that is called without a command; click has the class, or typer a copy of its own."""

_OURS = str(Path(__file__).parents[1])


def run_app(app: typer.Typer) -> None:
    """Run a command line and exit; a wrong argument, an error of ours or of the target is one line each."""
    try:
        code = app(standalone_mode=False)
    except LightintError as error:
        _stop(one_line(error), error)
    except typer.Abort as error:
        _stop("stopped", error, 130)
    except Exception as error:
        if type(error).__name__ == _HELP:
            typer.echo(str(error), err=True, nl=bool(str(error)))  # empty where typer has printed the help itself
            sys.exit(2)
        _stop(_usage(error) or told(error), error)
    sys.exit(code if isinstance(code, int) else 0)


def _stop(said: str, error: BaseException, code: int = 2) -> None:
    log.debug("the command stopped", exc_info=error)
    typer.echo(f"lightint: {said}", err=True)
    sys.exit(code)


def _usage(error: Exception) -> str:
    """What typer says of an argument that it cannot take; empty for any other error."""
    spoken = getattr(error, "format_message", None)
    if spoken is None:
        return ""
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", "lightint")
    return f"{' '.join(str(spoken()).split())} · fix: see {command} --help"


def stages() -> Callable[[str], None]:
    """Tells on a terminal what is done next, and after how many seconds; stderr of a script is for the error alone."""
    began = time.perf_counter()

    def tell(what: str) -> None:
        if sys.stderr.isatty():
            typer.echo(f"{time.perf_counter() - began:7.1f} s  {what}", err=True)

    return tell


def check_writable(option: str, path: Path | None) -> None:
    """Before any work is done: whether a file can be written at ``path``.

    Args:
        option: the option or argument that names it, for the message.

    Raises:
        InputError: it is a folder, its folder is not there or is none, or one of them may not be written.
    """
    if path is None:
        return
    reason = _why_not(path)
    if reason:
        raise InputError(f"{path} cannot be written", where=option, why=reason, fix="name a file in a folder of yours")


def check_folder(option: str, folder: Path) -> None:
    """Before any work is done: whether files can be written into ``folder``, which is made where it is not there.

    Args:
        option: the option that names it, for the message.

    Raises:
        InputError: it is no folder, cannot be made or may not be written.
    """
    reason = "it names no folder" if "\0" in str(folder) else _why_no_file_in(folder, makes_folders=True)
    if reason:
        raise InputError(f"{folder} cannot be written to", where=option, why=reason, fix="name a folder of yours")


def _why_not(path: Path) -> str:
    if not path.name or "\0" in str(path):
        return "it names no file"
    try:
        if path.is_dir():
            return "it is a folder"
        if path.is_file():
            path.open("ab").close()
        elif path.exists():
            return "" if os.access(path, os.W_OK) else "it may not be written"
    except OSError as error:
        return f"it may not be written ({error.strerror})"
    return "" if path.exists() else _why_no_file_in(path.parent)


def _why_no_file_in(folder: Path, *, makes_folders: bool = False) -> str:
    """Tried with a file without a name: rights alone do not tell for root, nor for what the system shows as files."""
    try:
        while makes_folders and not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.exists():
            return f"there is no folder {folder}"
        if not folder.is_dir():
            return f"{folder} is no folder"
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return f"the folder {folder} may not be written ({error.strerror})"
    return ""


@contextmanager
def user_call(target: str) -> Iterator[None]:
    """What the target's own code raises is an :class:`InputError` that says where; errors of ours pass.

    PyTorch logs the trace of an operation that fails on fake values; unless ``TORCH_LOGS`` asks for more, one line is
    enough here.
    """
    fakes = logging.getLogger("torch._subclasses.fake_tensor")
    level = fakes.level
    if not os.environ.get("TORCH_LOGS"):
        fakes.setLevel(logging.CRITICAL)
    try:
        yield
    except LightintError:
        raise
    except (Exception, SystemExit) as error:
        where = user_line(error) or _raised_at(error) or target
        fix = "run the module on these arguments without lightint first"
        raise InputError(f"the call of {target} fails", where=where, why=told(error), fix=fix) from error
    finally:
        fakes.setLevel(level)


def _raised_at(error: BaseException) -> str:
    """The innermost line outside of ours and of installed packages."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((_OURS, "<")) and _is_users(frame.filename)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""


def _is_users(filename: str) -> bool:
    return not any(part in filename for part in ("site-packages", "dist-packages", f"lib{os.sep}python"))
