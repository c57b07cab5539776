"use strict";
// The drawing: cytoscape.js draws, dagre lays out each side by itself, and the two are put side by side.

const GAP = 130;
const NARROW = 600; // pixels below which one side stands under the other
const LABEL = 26; // letters of a label

class Drawing {
  constructor(container, onSelect, onToggle, onHover) {
    this.laidOut = {};
    this.cy = cytoscape({
      container,
      minZoom: 0.05,
      maxZoom: 3,
      boxSelectionEnabled: false,
      autoungrabify: true,
      style: drawingStyle(),
    });
    this.cy.on("tap", "node", (event) => onSelect(event.target.id()));
    this.cy.on("dbltap", "node", (event) => onToggle(event.target.id()));
    this.cy.on("mouseover", "node", (event) => onHover(event.target.id(), event.renderedPosition));
    this.cy.on("mouseout viewport", () => onHover(null));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.cy.style(drawingStyle()));
  }

  // Draws boxes and edges; what is on the screen stays where it was if `anchor` is among the boxes.
  show(shown, links, anchor) {
    const before = anchor && this.cy.getElementById(anchor).renderedPosition();
    this.cy.startBatch();
    this.cy.elements().remove();
    this.cy.add(shown.boxes.map(({ item, isOpen }) => this.box(shown, item, isOpen)));
    this.cy.add(shown.edges().map((edge) => ({ data: { ...edge, kind: "flow" } })));
    this.cy.endBatch();
    this.layOut();
    this.link(links);
    const now = anchor && this.cy.getElementById(anchor).renderedPosition();
    if (before && now) this.cy.panBy({ x: before.x - now.x, y: before.y - now.y });
    else this.fit();
  }

  link(links) {
    this.cy.remove('edge[kind = "link"]');
    this.cy.add(links.map((link) => ({ data: { ...link, kind: "link" }, classes: link.isChosen ? "chosen" : "" })));
  }

  box(shown, item, isOpen) {
    const counts = shown.outcomesOf(item);
    const total = Object.values(counts).reduce((sum, count) => sum + count, 0);
    const work = shown.workOf(item);
    const folded = !isOpen && (item.load || (item.children && item.children.length));
    const size = item.region ? `calls ${item.region}` : item.row ? "" : `${total} op${total === 1 ? "" : "s"}`;
    const under = [size, work ? counted(work, "FLOP") : ""].filter(Boolean).join(" · ");
    const name = item.label.length > LABEL ? `${item.label.slice(0, LABEL - 1)}…` : item.label;
    const label = `${folded ? "▸ " : ""}${name}${under && item.kind !== "root" && !isOpen ? `\n${under}` : ""}`;
    const longest = Math.max(...label.split("\n").map((line) => line.length));
    return {
      data: {
        id: item.id,
        parent: item.kind === "root" ? undefined : item.parent.id,
        label,
        side: item.side,
        kind: item.kind,
        outcome: mainOutcome(counts),
        width: 24 + 6.4 * longest,
        height: label.includes("\n") ? 40 : 26,
      },
    };
  }

  layOut() {
    const before = this.side("b", 0, 0);
    const isNarrow = this.cy.container().clientWidth < NARROW;
    this.side("a", isNarrow ? 0 : before.x2 + GAP, isNarrow ? before.y2 + GAP : 0);
  }

  // A side that looks as it did is not laid out again.
  side(side, x, y) {
    const boxes = this.cy.nodes(`[side = "${side}"]`);
    const leaves = boxes.filter((node) => !node.isParent());
    const flow = this.cy.edges(`[kind = "flow"][side = "${side}"]`);
    const ends = flow.map((edge) => `${edge.data("source")}>${edge.data("target")}`);
    const looks = [...boxes.map((box) => `${box.id()} ${box.data("label")}`), ...ends].join("\n");
    const known = this.laidOut[side];
    if (known && known.looks === looks) leaves.positions((node) => known.places[node.id()]);
    else this.layOutBoxes(boxes, flow);
    const bounds = boxes.boundingBox({ includeLabels: false });
    leaves.positions((node) => ({ x: node.position("x") - bounds.x1 + x, y: node.position("y") - bounds.y1 + y }));
    this.laidOut[side] = { looks, places: Object.fromEntries(leaves.map((node) => [node.id(), { ...node.position() }])) };
    return boxes.boundingBox({ includeLabels: false });
  }

  layOutBoxes(boxes, flow) {
    const ranker = boxes.length > 80 ? "longest-path" : "network-simplex";
    const spacing = { rankDir: "TB", nodeSep: 12, rankSep: 26, ranker };
    boxes.union(flow).layout({ name: "dagre", animate: false, fit: false, ...spacing }).run();
  }

  mark(id) {
    this.cy.nodes().removeClass("selected");
    if (id) this.cy.getElementById(id).addClass("selected");
  }

  bringIntoView(id) {
    const box = this.cy.getElementById(id).renderedBoundingBox();
    const { width, height } = this.cy.container().getBoundingClientRect();
    if (box.x2 < 0 || box.y2 < 0 || box.x1 > width || box.y1 > height) this.centre([id]);
  }

  highlight(matched, stopped) {
    this.cy.nodes().removeClass("matched stopped");
    for (const id of matched) this.cy.getElementById(id).addClass("matched");
    if (stopped) this.cy.getElementById(stopped).addClass("stopped");
  }

  centre(ids) {
    const boxes = this.cy.collection(ids.map((id) => this.cy.getElementById(id)));
    if (!boxes.nonempty()) return;
    if (this.cy.zoom() < 0.6) this.cy.zoom(0.9);
    this.cy.center(boxes);
  }

  fit() {
    this.cy.fit(undefined, 24);
    if (this.cy.zoom() > 1.1) {
      this.cy.zoom(1.1);
      this.cy.center();
    }
  }

  zoom(factor) {
    const { width, height } = this.cy.container().getBoundingClientRect();
    this.cy.zoom({ level: this.cy.zoom() * factor, renderedPosition: { x: width / 2, y: height / 2 } });
  }
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function drawingStyle() {
  const outcomes = ["kept", "rewritten", "computed-once", "removed", "near-miss"];
  return [
    {
      selector: "node",
      style: {
        label: "data(label)",
        shape: "round-rectangle",
        width: "data(width)",
        height: "data(height)",
        "text-wrap": "wrap",
        "text-valign": "center",
        "font-family": "system-ui, sans-serif",
        "font-size": 11,
        color: colour("ink"),
        "background-color": colour("card"),
        "border-width": 1.5,
        "border-color": colour("kept"),
        "min-zoomed-font-size": 5,
      },
    },
    ...outcomes.map((name) => ({
      selector: `node[outcome = "${name.replace("-", " ")}"]`,
      style: { "border-color": colour(name), "background-color": colour(`${name}-soft`) },
    })),
    {
      selector: ":parent",
      style: {
        "text-valign": "top",
        "text-margin-y": 14,
        "background-opacity": 0.25,
        "border-width": 1,
        padding: 18,
        "font-weight": 600,
      },
    },
    { selector: 'node[kind = "root"]', style: { "font-size": 15, "border-color": colour("line") } },
    { selector: 'node[outcome = "removed"]', style: { "border-style": "dashed" } },
    { selector: 'node[kind = "decision"], node[kind = "branch"]', style: { shape: "cut-rectangle" } },
    {
      selector: "edge",
      style: {
        width: 1,
        "curve-style": "bezier",
        "line-color": colour("line"),
        "target-arrow-color": colour("line"),
        "target-arrow-shape": "triangle",
        "arrow-scale": 0.7,
      },
    },
    {
      selector: 'edge[kind = "link"]',
      style: {
        width: 1.5,
        "line-style": "dashed",
        "curve-style": "unbundled-bezier",
        "control-point-distances": [40],
        "control-point-weights": [0.5],
        "line-color": colour("rewritten"),
        "target-arrow-color": colour("rewritten"),
        opacity: 0.4,
      },
    },
    {
      selector: 'edge[outcome = "computed once"]',
      style: { "line-color": colour("computed-once"), "target-arrow-color": colour("computed-once") },
    },
    {
      selector: 'edge[outcome = "kept"]',
      style: { "line-color": colour("kept"), "target-arrow-color": colour("kept") },
    },
    { selector: "edge.chosen", style: { width: 3, opacity: 1 } },
    { selector: "node.selected", style: { "border-width": 4 } },
    { selector: "node.matched", style: { "border-width": 4, "border-color": colour("rewritten") } },
    { selector: "node.stopped", style: { "border-width": 5, "border-color": colour("failure") } },
  ];
}
