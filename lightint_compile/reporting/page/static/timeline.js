"use strict";
// The timeline: one row a chunk, with what was decided, and the camera path from above beside it.

const SVG = "http://www.w3.org/2000/svg";
const CELL = 7;
const STAGES = 7; // colours

function showTimeline(section, chunks, path) {
  if (!chunks.length) return;
  section.hidden = false;
  const frames = Math.max(...chunks.flatMap((chunk) => [...chunk.context_frames, chunk.frames[1] - 1])) + 1;
  const steps = stepsOf(chunks, path);
  const timed = chunks.some((chunk) => Object.keys(chunk.milliseconds || {}).length);
  const bounded = chunks.some((chunk) => chunk.error);
  const heads = ["chunk", "overlap", "dynamics", "context frames", "steps"];
  const stages = stagesOf(chunks);
  if (timed) heads.push("milliseconds");
  if (bounded) heads.push("error");
  const head = make("tr");
  for (const name of heads) head.append(Object.assign(make("th", name), { scope: "col" }));
  const body = section.querySelector("tbody");
  section.querySelector("thead").replaceChildren(head);
  const longest = Math.max(1, ...chunks.map((chunk) => sum(Object.values(chunk.milliseconds || {}))));
  const map = new CameraMap(section.querySelector(".camera"), path);
  chunks.forEach((chunk, place) => {
    const row = make("tr");
    row.tabIndex = place ? -1 : 0;
    row.append(
      Object.assign(make("th", chunk.chunk), { scope: "row" }),
      cell(overlapBar(chunk), overlapText(chunk)),
      cell(null, chunk.dynamics === null ? "" : chunk.dynamics.toFixed(3)),
      cell(frameMap(chunk, frames), contextText(chunk)),
      cell(stepDots(chunk, steps), stepText(chunk)),
    );
    if (timed) row.append(cell(stageBar(chunk.milliseconds || {}, stages, longest), stageText(chunk.milliseconds || {})));
    if (bounded) row.append(chunk.error ? cell(errorBar(chunk), errorText(chunk)) : cell());
    const choose = () => map.show(chunk);
    row.addEventListener("mouseenter", choose);
    row.addEventListener("focus", choose);
    row.addEventListener("keydown", (event) => moveRow(event, body, place));
    body.append(row);
  });
  map.show(chunks[chunks.length - 1]);
  if (timed) section.querySelector(".legend").after(stageLegend(stages));
}

// Stages in the order in which a chunk runs them; what is in none comes last.
function stagesOf(chunks) {
  const names = new Set(chunks.flatMap((chunk) => Object.keys(chunk.milliseconds || {})));
  const place = (name) => (name === "rest" ? Infinity : rank(name));
  return [...names].sort((a, b) => place(a) - place(b));
}

function stageLegend(stages) {
  const legend = make("p", "milliseconds:", "legend");
  stages.forEach((stage, number) => {
    const key = make("span", "", "key");
    key.append(make("span", "", `dot stage-${number % STAGES}`), stage);
    legend.append(key, " ");
  });
  return legend;
}

function contextText(chunk) {
  const kept = chunk.kept_frames ? `, ${chunk.kept_frames} kept` : "";
  return `${chunk.context_frames.length} (${chunk.saved_frames} fewer${kept})`;
}

function moveRow(event, body, place) {
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const next = by && body.rows[place + by];
  if (!next) return;
  event.preventDefault();
  body.rows[place].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function stepsOf(chunks, path) {
  const named = chunks.flatMap((chunk) => [
    ...chunk.reused_steps,
    ...chunk.refused_steps,
    ...chunk.drifts.map(([step]) => step),
  ]);
  return Math.max(path.steps || 0, named.length ? Math.max(...named) + 2 : 0);
}

function cell(drawing, text) {
  const made = make("td");
  if (drawing) made.append(drawing);
  if (text) made.append(make("span", text, "quiet"));
  return made;
}

function draw(tag, attributes, parent) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (parent) parent.append(element);
  return element;
}

function picture(width, height) {
  return draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
}

function overlapBar(chunk) {
  const svg = picture(84, 14);
  draw("rect", { x: 0, y: 3, width: 80, height: 8, class: "track" }, svg);
  const seen = chunk.novel ? "bar" : "bar seen";
  draw("rect", { x: 0, y: 3, width: 80 * Math.min(chunk.overlap, 1), height: 8, class: seen }, svg);
  const at = 80 * Math.min(chunk.threshold, 1);
  if (chunk.threshold) draw("line", { x1: at, x2: at, y1: 0, y2: 14, class: "tick" }, svg);
  return svg;
}

function overlapText(chunk) {
  if (!chunk.threshold) return "nothing compared";
  const seen = chunk.novel ? "below" : "reaches";
  return `${chunk.overlap.toFixed(2)} ${seen} ${chunk.threshold.toFixed(2)}: ${chunk.novel ? "new" : "seen before"}`;
}

function frameMap(chunk, frames) {
  const size = Math.max(2, Math.min(CELL, Math.floor(420 / frames)));
  const svg = picture(frames * size, 14);
  const kept = new Set(chunk.context_frames.slice(0, chunk.kept_frames));
  const chosen = new Set(chunk.context_frames);
  for (let frame = 0; frame < frames; frame++) {
    const isOwn = frame >= chunk.frames[0] && frame < chunk.frames[1];
    const kind = isOwn ? "own" : kept.has(frame) ? "held" : chosen.has(frame) ? "chosen" : "track";
    const later = frame >= chunk.frames[1];
    if (later) continue;
    const box = { x: frame * size, y: 2, width: size - (size > 3 ? 1 : 0), height: 10, class: kind };
    draw("title", {}, draw("rect", box, svg)).textContent = `frame ${frame}`;
  }
  return svg;
}

function stepDots(chunk, steps) {
  const svg = picture(Math.max(steps, 1) * 16, 16);
  const drifts = new Map(chunk.drifts);
  for (let step = 0; step < steps; step++) {
    const isReused = chunk.reused_steps.includes(step) && !chunk.refused_steps.includes(step);
    const kind = chunk.refused_steps.includes(step) ? "refused" : isReused ? "reused" : "computed";
    const said = drifts.has(step) ? `step ${step}: ${kind}, drift ${drifts.get(step).toFixed(3)}` : `step ${step}: ${kind}`;
    const shape =
      kind === "refused"
        ? draw("path", { d: `M${16 * step + 3} 3l10 10m0 -10l-10 10`, class: kind }, svg)
        : draw("circle", { cx: 16 * step + 8, cy: 8, r: 5, class: kind }, svg);
    draw("title", {}, shape).textContent = said;
  }
  return svg;
}

function stepText(chunk) {
  const reused = chunk.reused_steps.filter((step) => !chunk.refused_steps.includes(step));
  const drift = chunk.drifts.map(([step, value]) => `${step}: ${value.toFixed(3)}`).join(", ");
  const parts = [];
  if (reused.length) parts.push(`${reused.join(", ")} reused`);
  if (chunk.refused_steps.length) parts.push(`${chunk.refused_steps.join(", ")} refused`);
  if (drift) parts.push(`drift of ${drift}`);
  return parts.join("; ") || "all computed";
}

function stageBar(times, stages, longest) {
  const svg = picture(144, 14);
  let x = 0;
  stages.forEach((stage, number) => {
    const time = times[stage] || 0;
    const width = (140 * time) / longest;
    const part = draw("rect", { x, y: 2, width, height: 10, class: `stage stage-${number % STAGES}` }, svg);
    draw("title", {}, part).textContent = `${stage}: ${time.toFixed(2)} ms`;
    x += width;
  });
  return svg;
}

function stageText(times) {
  const largest = Object.entries(times).sort(([, a], [, b]) => b - a)[0];
  const total = sum(Object.values(times)).toFixed(1);
  return largest ? `${total}; ${largest[0]} ${largest[1].toFixed(1)}` : "";
}

// What was measured as a bar, what calibration predicts and what the budget allows as lines.
function errorBar({ error }) {
  const { allowed, calibrated, measured } = error;
  const shown = [allowed, calibrated, measured].filter(Number.isFinite);
  if (!shown.length) return null;
  const scale = 80 / Math.max(...shown, 1e-12);
  const svg = picture(84, 14);
  draw("rect", { x: 0, y: 3, width: 80, height: 8, class: "track" }, svg);
  const over = measured === "no number" || measured > allowed;
  const width = measured === "no number" ? 80 : scale * (measured || 0);
  draw("rect", { x: 0, y: 3, width, height: 8, class: over ? "bar over" : "bar" }, svg);
  for (const [value, kind] of [[calibrated, "tick predicted"], [allowed, "tick"]]) {
    if (Number.isFinite(value)) draw("line", { x1: scale * value, x2: scale * value, y1: 0, y2: 14, class: kind }, svg);
  }
  return svg;
}

function errorText({ error }) {
  const known = ["measured", "calibrated", "allowed"].flatMap((name) => [name, `${name} dB`]).filter((name) => name in error);
  const number = (value) => (typeof value === "number" ? Number(value).toPrecision(3) : value);
  return known.map((name) => `${name.replace("calibrated", "predicted")} ${number(error[name])}`).join(", ");
}

function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}

class CameraMap {
  constructor(element, path) {
    Object.assign(this, { element, path });
    this.caption = element.querySelector("figcaption");
  }

  show(chunk) {
    const { x, z, heading } = this.path;
    const old = this.element.querySelector("svg");
    if (old) old.remove();
    if (!x || !x.length) {
      this.caption.textContent = `chunk ${chunk.chunk}: its cameras are not at hand`;
      return;
    }
    const size = 280;
    const far = Math.max(spread(x), spread(z), 1e-6);
    const scale = (size - 60) / far;
    const [left, top] = [middle(x), middle(z)];
    const long = far < 1e-3 ? 110 : 20; // a camera that only turns leaves the room to where it looks
    const wedge = `M0 0L${-0.3 * long} ${-long}L${0.3 * long} ${-long}Z`;
    const at = (frame) => [size / 2 + (x[frame] - left) * scale, size / 2 - (z[frame] - top) * scale];
    const svg = picture(size, size);
    draw("polyline", { points: x.map((_, frame) => at(frame).join()).join(" "), class: "path" }, svg);
    const chosen = new Set(chunk.context_frames);
    x.forEach((_, frame) => {
      const own = frame >= chunk.frames[0] && frame < chunk.frames[1];
      const kind = own ? "own" : chosen.has(frame) ? "chosen" : "track";
      const [cx, cy] = at(frame);
      const turn = (heading[frame] * 180) / Math.PI;
      const place = `translate(${cx} ${cy}) rotate(${turn})`;
      if (own || chosen.has(frame)) draw("path", { d: wedge, transform: place, class: `view ${kind}` }, svg);
      draw("circle", { cx, cy, r: own ? 4 : 3, class: kind }, svg);
    });
    this.element.prepend(svg);
    this.caption.textContent =
      `chunk ${chunk.chunk} from above: frames ${chunk.frames[0]} to ${chunk.frames[1] - 1}` +
      `, ${chunk.context_frames.length} context frames`;
  }
}

function spread(values) {
  return Math.max(...values) - Math.min(...values);
}

function middle(values) {
  return (Math.max(...values) + Math.min(...values)) / 2;
}
