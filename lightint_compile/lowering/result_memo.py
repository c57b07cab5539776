"""Results kept between calls: computed again when the content of what they came from has changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lightint_compile.runtime.content_check import Check, Content, Watch
from lightint_compile.runtime.streams import Produced

SLOTS = 4
"""Results kept for each call of a region. Conditional and unconditional prompts of classifier-free guidance alternate,
and two models may share compiled code; more than a few live prompts do not occur."""

STEP_SLOTS = 2
"""The same for what the steps of a loop share: as large as the video, of a chunk and of the other half of guidance."""

WEIGHT_SLOTS = 2
"""The same for what is made from weights alone, for two models that share compiled code."""

OVERWRITTEN = 1
"""Results kept of what lay where the arguments of a new one lie: a prompt buffer that is filled in turn with two
prompts. What belongs to weights that were written to is let go instead of waiting for its slot."""


@dataclass(frozen=True)
class Site:
    """One call of a region whose results are kept, and everything that they depend on.

    Attributes:
        region: the region.
        inputs: positions of the program's arguments from which the call's arguments are made without other sites;
            tensors that the program holds itself count behind the arguments.
        upstream: other sites whose results its arguments are made from.
        slots: how many results are kept.
    """

    region: str
    inputs: tuple[int, ...]
    upstream: tuple[str, ...] = ()
    slots: int = SLOTS

    def to_dict(self) -> dict[str, Any]:
        """Plain data; :meth:`from_dict` takes it back."""
        return {**asdict(self), "inputs": list(self.inputs), "upstream": list(self.upstream)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Site:
        """The inverse of :meth:`to_dict`."""
        return cls(data["region"], tuple(data["inputs"]), tuple(data["upstream"]), data["slots"])


@dataclass(eq=False)
class _Entry:
    """A kept result. Results that are computed from it are identified by it.

    Attributes:
        content, besides: what it comes from: arguments of the program, and results of other sites and numbers.
        is_kept: whether a call may still find it; what was made from it cannot be found either once it is not.
    """

    content: Content
    besides: tuple[Any, ...]
    result: tuple[Any, ...]
    produced: Produced
    is_kept: bool = True

    @property
    def is_findable(self) -> bool:
        """Whether a call may be found: all kept results that it depends on still exist."""
        return all(each.is_kept for each in self.besides if isinstance(each, _Entry))

    def equals(self, other: _Entry) -> bool:
        """Whether it comes from the same."""
        return self.besides == other.besides and self.content.equals(other.content)


class Memo:
    """A call of a region whose results are kept, identified by the content of what they depend on.

    A call whose sources cannot be read (:class:`~lightint_compile.runtime.content_sums.Reading`) computes, and so do
    those that are made from its results. Threads do not wait for each other: two that miss at once both compute.

    Attributes:
        hits: calls answered by a kept result.
        misses: calls that left one.
    """

    def __init__(self, function: Callable[..., Sequence[Any]], name: str, site: Site, watch: Watch) -> None:
        self.function, self.name, self.site = function, name, site
        self.hits = self.misses = 0
        self._watch = watch
        self._entries: list[_Entry] = []
        self._lock = threading.Lock()

    def __call__(self, *args: Any) -> Sequence[Any]:
        """The kept result for these arguments, or a new one."""
        check = self._watch.current()
        content, upstream = self._sources(check)
        if check is None or content is None:
            return self.function(*args)
        besides = (*upstream, torch.is_inference_mode_enabled(), *(repr(a) for a in args if not _is_tensor(a)))
        entry = self._found(content, besides)
        if entry is None:
            result = tuple(map(_own, self.function(*args)))
            entry = _Entry(content, besides, result, Produced(filter(_is_tensor, result)))
            self._keep(entry)
        else:
            entry.produced.wait()
        check.used[self.name] = entry
        return entry.result

    def reset(self) -> None:
        """Forget every result."""
        with self._lock:
            self._hold([])

    def _sources(self, check: Check | None) -> tuple[Content | None, tuple[object, ...]]:
        """What the call's arguments come from: arguments of the program, and results of other sites."""
        if check is None or not all(name in check.used for name in self.site.upstream):
            return None, ()
        content = check.content(self.site.inputs)
        if content is None:
            self._watch.tell(check.why_not(self.site.inputs))
        return content, tuple(check.used[name] for name in self.site.upstream)

    def _found(self, content: Content, besides: tuple[Any, ...]) -> _Entry | None:
        with self._lock:
            for place, entry in enumerate(self._entries):
                if entry.besides == besides and entry.content.equals(content):
                    self._entries.append(self._entries.pop(place))
                    self.hits += 1
                    return entry
        return None

    def _keep(self, entry: _Entry) -> None:
        """The newest are last. An equal one, made by another thread meanwhile, makes room as well."""
        with self._lock:
            self.misses += 1
            others = [old for old in self._entries if old.is_findable and not old.equals(entry)]
            gone = [old for old in others if entry.content.replaces(old.content)][:-OVERWRITTEN]
            self._hold([*[old for old in others if old not in gone][1 - self.site.slots :], entry])

    def _hold(self, entries: list[_Entry]) -> None:
        for old in self._entries:
            old.is_kept = old in entries
        self._entries = entries


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _own(value: Any) -> Any:
    """``value`` with the same sizes and strides in memory of its own, where it is a tensor.

    A region's results may share memory with its arguments, which are written to later, or lie where the next replay of
    a CUDA graph writes.
    """
    if not _is_tensor(value):
        return value
    plain = value.layout is torch.strided and not (value.is_conj() or value.is_neg() or value.is_quantized)
    if not plain or not value.numel():
        return value.clone()
    span = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return value.as_strided((span,), (1,)).clone().as_strided(value.shape, value.stride(), 0)
