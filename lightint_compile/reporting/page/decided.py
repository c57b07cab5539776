"""The card of a run: what was decided, how often, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from lightint_compile.reporting.section import Section

Chunks = Sequence[Mapping[str, Any]]

ADAPTIVE = (
    "the adaptive rules read the first clip, the newest frames (more of them where the picture is lively), and the "
    "clip that shows most of what the camera comes back to"
)


def decided(sections: Sequence[Section], chunks: Chunks, steps: int) -> Iterator[str]:
    """The body of the card; ``steps`` are those of a chunk, 0 where that is not known."""
    if not chunks:
        yield '<p class="figure">– <span>chunks</span></p>'
        yield "<p>Nothing has run, or nothing is decided at run time. After a rollout, "
        yield "<code>lightint_compile.report(compiled)</code> shows its decisions.</p>"
        return
    if not any(c["threshold"] or c["context_frames"] or c["reused_steps"] for c in chunks):
        yield f'<p class="figure">{len(chunks)} <span>call{"s" if len(chunks) > 1 else ""}</span></p>'
        yield "<p>Nothing is decided at run time.</p>"
        return
    yield f'<p class="figure">{len(chunks)} <span>{"chunk" if len(chunks) == 1 else "chunks"}</span></p><dl>'
    yield entry("steps reused", _of(reused(chunks), steps * len(chunks)))
    yield entry("refused for drift", str(sum(len(c["refused_steps"]) for c in chunks)))
    read, fewer = frames(chunks)
    yield entry("context frames", f"{read} read, {fewer} fewer than the model gathers")
    kept = sum(c["kept_frames"] for c in chunks)
    yield entry("keys and values kept", f"of {kept} frames") if kept else ""
    yield entry("views seen before", f"in {sum(not c['novel'] for c in chunks)} of {len(chunks)} chunks")
    yield "</dl>"
    lines = "".join(f"<li>{escape(line)}</li>" for line in _reasons(sections, chunks))
    yield f'<p class="quiet">Why:</p><ul class="quiet">{lines}</ul>' if lines else ""


def reused(chunks: Chunks) -> int:
    """Steps that were reused in the end."""
    return sum(len(set(c["reused_steps"]) - set(c["refused_steps"])) for c in chunks)


def frames(chunks: Chunks) -> tuple[int, int]:
    """Context frames that were read, and how many more the model gathers."""
    return sum(len(c["context_frames"]) for c in chunks), sum(c["saved_frames"] for c in chunks)


def _reasons(sections: Sequence[Section], chunks: Chunks) -> Iterator[str]:
    """Why it was decided so: by what, and where views were new, seen before, or drifted."""
    for said in dict.fromkeys(said for section in sections for phase, said in section.runs if phase == "decide"):
        yield f"decided once a chunk: {said}"
        yield from [ADAPTIVE] if "adaptive rules" in said and "context frames" in said else []
    compared = [c for c in chunks if c["threshold"]]
    seen, new = ([c for c in compared if c["novel"] is novel] for novel in (False, True))
    if seen:
        then = ", so steps may be reused" if any(c["reused_steps"] for c in seen) else ""
        yield f"{_chunks(seen)}: an earlier clip shows what the camera comes to (overlap from the threshold on){then}"
    if new:
        then = "" if any(c["reused_steps"] for c in new) else ", so every step is computed"
        yield f"{_chunks(new)}: the camera comes to something new (overlap below its threshold){then}"
    if refused := [c for c in chunks if c["refused_steps"]]:
        yield f"{_chunks(refused)}: a reuse was refused, because the first block's output had drifted too far"


def _chunks(chosen: Chunks) -> str:
    """``chunks 1-4, 7``."""
    spans: list[list[int]] = []
    for number in (c["chunk"] for c in chosen):
        if spans and spans[-1][-1] == number - 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    said = ", ".join("-".join(map(str, span)) for span in spans)
    return f"chunk{'s' if len(chosen) > 1 else ''} {said}"


def _of(part: int, whole: int) -> str:
    return f"{part} of {whole}" if whole else str(part)


def entry(term: str, text: str) -> str:
    """A term of a card and what is said of it, as HTML."""
    return f"<dt>{term}</dt><dd>{text}</dd>"
