"""The folder of kept programs: owned by the user alone, and no larger than its limit.

Records are code that is loaded and run, so a folder that somebody else could have written to is not used. Several
processes share it: a record is moved aside in one step before it is deleted.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

log = logging.getLogger(__name__)

LIMIT = "LIGHTINT_CACHE_GB"
"""The environment variable that says how many gigabytes may be kept; 0 keeps nothing."""
DEFAULT_LIMIT = 10.0
_ABANDONED = 24 * 3600.0
"""Seconds after which what an interrupted process left is deleted."""


class CacheFolder:
    """One folder of records; each record is a folder.

    Attributes:
        path: where it is; it may not exist yet.
    """

    STAGING = "staging-"
    _ASIDE = "aside-"

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_ready(self) -> bool:
        """Whether records may be read and written: made for this user alone where it was not there."""
        if limit() <= 0:
            return False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(mode=0o700, exist_ok=True)
            reason = distrust(self.path)
        except OSError as error:
            reason = str(error)
        if reason:
            _warn_once(str(self.path), reason)
        return not reason

    def used(self, record: Path) -> None:
        """Note that a record was used just now: the one used longest ago is evicted first."""
        try:
            os.utime(record)
        except OSError:
            log.debug("%s is gone already", record)

    def remove(self, record: Path) -> None:
        """Delete a record; a process that reads it meanwhile finds all of it or nothing."""
        try:
            aside = Path(tempfile.mkdtemp(dir=self.path, prefix=self._ASIDE))
            os.replace(record, aside / record.name)
            shutil.rmtree(aside, ignore_errors=True)
        except OSError as error:
            log.debug("%s is not deleted: %s", record, error)

    def evict(self) -> None:
        """Delete the records that were used longest ago until the rest is within the limit."""
        sizes: list[tuple[float, int, Path]] = []
        for entry in self.path.iterdir():
            try:
                age = time.time() - entry.stat().st_mtime
                if entry.name.startswith((self.STAGING, self._ASIDE)):
                    if age > _ABANDONED:
                        shutil.rmtree(entry, ignore_errors=True)
                elif (entry / "record.json").exists():
                    sizes.append((-age, sum(file.stat().st_size for file in entry.iterdir()), entry))
            except OSError:  # another process deletes it
                continue
        total = sum(size for _, size, _ in sizes)
        for _, size, record in sorted(sizes):
            if total <= limit() * 1e9:
                return
            log.info("the kept program %s is deleted: more than %s gigabytes are kept", record.name, limit())
            self.remove(record)
            total -= size


class ShippedFolder(CacheFolder):
    """A folder of records that came from elsewhere: read, never written to, and trusted where root owns it too."""

    def is_ready(self) -> bool:
        """Whether records may be read."""
        reason = distrust(self.path, root=True)
        if reason:
            _warn_once(str(self.path), reason)
        return not reason

    def remove(self, record: Path) -> None:
        """What came from elsewhere stays."""


def limit() -> float:
    """How many gigabytes of records may be kept."""
    text = os.environ.get(LIMIT, "")
    try:
        return float(text) if text else DEFAULT_LIMIT
    except ValueError:
        _warn_once(LIMIT, f"{text!r} is no number of gigabytes")
        return DEFAULT_LIMIT


def distrust(path: Path, *, root: bool = False) -> str:
    """Why a folder is not to be used: somebody else owns it or may write to it; empty where it is ours alone.

    Args:
        root: whether root may own it, as in the image of a container.
    """
    if not hasattr(os, "getuid"):
        return ""
    found, above = path.lstat(), path.parent.stat()
    if not stat.S_ISDIR(found.st_mode):
        return "it is no folder"
    if found.st_uid != os.getuid() and not (root and found.st_uid == 0):
        return f"it belongs to user {found.st_uid}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to it (chmod go-w {path})"
    if above.st_mode & stat.S_IWOTH and not above.st_mode & stat.S_ISVTX:
        return f"others may replace it (chmod o-w {path.parent})"
    return ""


@functools.cache
def _warn_once(what: str, reason: str) -> None:
    log.warning("programs kept on disk are not used, so every start is cold: %s: %s", what, reason)
