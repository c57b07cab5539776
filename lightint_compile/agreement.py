"""Ranks that share a call agree on what they compiled before the first of them waits for another.

A rank that failed, or that compiled something else, would leave the others waiting in a collective. So each says in the
store of the process group what came of it, and reads what came of the others: one error on all, or none.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from lightint_compile.errors import RankError, told
from lightint_compile.passes.ir.ranks import Ranks

Result = TypeVar("Result")

PATIENCE = timedelta(minutes=30)
"""How long a rank waits for what came of another."""

_ROUNDS: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)


def agreed(ranks: Ranks, make: Callable[[], Result], word: Callable[[Result], str]) -> Result:
    """What ``make`` gives, once every rank has made it with the same ``word``.

    Raises:
        OptionError: there is no process group.
        RankError: a rank failed, or has another word; raised on all ranks alike.
    """
    ranks.check_joined()
    store = _store(ranks)
    try:
        made = make()
    except Exception as error:
        store.set(str(ranks.rank), json.dumps({"failed": told(error)}))
        raise _failed(ranks.rank, ranks.count, told(error)) from error
    store.set(str(ranks.rank), json.dumps({"word": word(made)}))
    _compare([_heard(store, rank) for rank in range(ranks.count)])
    return made


_FIX = "give every rank the same model, options and shapes; the error of the first rank that failed says more"


def _store(ranks: Ranks) -> Any:
    """A place of its own for each compilation: all ranks make them in the same order."""
    from torch.distributed import distributed_c10d

    prefix = f"lightint/{ranks.group}/{next(_ROUNDS[ranks.group])}"
    return distributed_c10d.PrefixStore(prefix, distributed_c10d._get_default_store())  # type: ignore[attr-defined]


def _heard(store: Any, rank: int) -> dict[str, str]:
    try:
        store.wait([str(rank)], PATIENCE)
    except Exception as error:
        why = f"it said nothing in {PATIENCE}: {told(error)}"
        raise RankError(f"rank {rank} is not there", why=why, fix=_FIX) from error
    found: dict[str, str] = json.loads(store.get(str(rank)))
    return found


def _failed(rank: int, count: int, why: str) -> RankError:
    return RankError(f"rank {rank} of {count} failed, and all ranks stop", why=why, fix=_FIX)


def _compare(heard: list[dict[str, str]]) -> None:
    for rank, each in enumerate(heard):
        if "failed" in each:
            raise _failed(rank, len(heard), each["failed"])
    words = [each["word"] for each in heard]
    if len(set(words)) > 1:
        shown = ", ".join(f"rank {rank}: {word}" for rank, word in enumerate(words))
        raise RankError("the ranks did not compile the same graph", why=shown, fix=_FIX)
