"""What an evaluation has done so far, beside its JSON file, so that one that was interrupted goes on."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightint_compile.read_back import UnreadableError, of_type, parsed

from .results import Result
from .true_world import Walk


class WorkFile:
    """Results line by line, and the latents that others are compared with, in the folder `FILE.work`.

    Results of other settings are put away: the folder holds those of `settings` alone. Without a path all of it is in
    memory.
    """

    def __init__(self, json_file: Path | None, settings: dict[str, Any]) -> None:
        self._folder = None if json_file is None else json_file.with_name(json_file.name + ".work")
        self._reference: dict[str, Tensor] = {}
        self.results: list[Result] = []
        if self._folder is not None:
            self._open(self._folder, json.dumps(settings, sort_keys=True))

    def _open(self, folder: Path, settings: str) -> None:
        about = folder / "settings.json"
        if folder.exists() and not (about.exists() and about.read_bytes() == settings.encode()):
            shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        about.write_text(settings, encoding="utf-8")
        lines = folder / "results.jsonl"
        if lines.exists():
            text = lines.read_text(encoding="utf-8", errors="replace")
            self.results = list(filter(None, map(_read, text.splitlines())))

    def has(self, variant: str, walk: Walk) -> bool:
        """Whether this rollout is done."""
        return any(each.variant == variant and each.walk == (walk.family, walk.number) for each in self.results)

    def add(self, result: Result) -> None:
        """Keep the result of a rollout."""
        self.results.append(result)
        if self._folder is not None:
            with (self._folder / "results.jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(result.to_dict()) + "\n")

    def keep_reference(self, walk: Walk, latents: Tensor) -> None:
        """Keep what the others are compared with; before its result is added."""
        if self._folder is None:
            self._reference[walk.name] = latents
        else:
            save_file({"latents": latents.contiguous()}, self._folder / f"{walk.name}.safetensors")

    def reference(self, walk: Walk) -> Tensor:
        """The latents that were kept."""
        if self._folder is None:
            return self._reference[walk.name]
        return load_file(self._folder / f"{walk.name}.safetensors")["latents"]

    def close(self) -> None:
        """All is done and written elsewhere."""
        if self._folder is not None:
            shutil.rmtree(self._folder)


def _read(line: str) -> Result | None:
    """A result, or nothing where the line was cut off or damaged."""
    try:
        return parsed(line, partial(of_type, Result))
    except UnreadableError:
        return None


def fingerprint(module: torch.nn.Module) -> str:
    """A checksum of a module's weights."""
    import xxhash

    found = xxhash.xxh3_64()
    for name, value in module.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
    return found.hexdigest()
