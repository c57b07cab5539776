"use strict";
// What is drawn for a set of open items: boxes, data flow between them, and links from before to after.

class Shown {
  constructor(items, open) {
    this.items = items;
    this.open = open;
    this.boxes = [];
    this.found = new Map();
    for (const root of [items.before, items.after]) this.walk(root, 0);
  }

  isOpen(item) {
    return item.kind === "root" || (this.open.has(item.id) && this.items.childrenOf(item).length > 0);
  }

  walk(item, level) {
    this.boxes.push({ item, level, isOpen: this.isOpen(item) });
    if (this.isOpen(item)) for (const child of this.items.childrenOf(item)) this.walk(child, level + 1);
  }

  // The box that an item is in: itself, or the outermost closed one around it.
  boxOf(item) {
    if (!this.found.has(item.id)) {
      const outer = item.parent ? this.boxOf(item.parent) : item;
      this.found.set(item.id, outer === item.parent && this.isOpen(outer) ? item : outer);
    }
    return this.found.get(item.id);
  }

  // An open box has no edges of its own: they begin at its last child and end at its first.
  end(item, isTarget) {
    let box = this.boxOf(item);
    while (this.isOpen(box)) {
      const children = this.items.childrenOf(box);
      box = children[isTarget ? 0 : children.length - 1];
    }
    return box;
  }

  edges() {
    const made = new Map();
    const join = (from, to) => {
      const [a, b] = [this.end(from, false), this.end(to, true)];
      if (a !== b) made.set(`${a.id}>${b.id}`, { source: a.id, target: b.id, side: a.side });
    };
    const inputs = this.items.column.inputs;
    for (const item of this.items.all.values()) {
      if (!item.row) continue;
      const prefix = item.id.slice(0, item.id.lastIndexOf("/"));
      for (const place of item.row[inputs]) {
        const source = this.items.get(`${prefix}/${place}`);
        if (source && (source.kind !== "input" || this.isOpen(source.parent))) join(source, item);
      }
    }
    return [...made.values()];
  }

  // Links from what was replaced to what replaced it; with `chosen`, those of one item, kept or not.
  links(mode, chosen) {
    if (mode === "none" && !chosen) return [];
    const made = new Map();
    const { outcomes } = this.items.graph.before;
    outcomes.forEach((outcome, place) => {
      const from = this.items.get(`b/${place}`);
      const own = chosen && isWithin(from, chosen);
      if (!own && (mode === "none" || (mode === "replaced" && outcome === "kept") || outcome === "removed")) return;
      for (const id of this.items.successors(place)) {
        const to = this.items.nearest(id);
        const isChosen = own || (chosen && isWithin(to, chosen));
        const [a, b] = [this.boxOf(from), this.boxOf(to)];
        if (a.kind === "root" || b.kind === "root") continue;
        const key = `${a.id}=>${b.id}`;
        const known = made.get(key);
        made.set(key, { source: a.id, target: b.id, outcome, count: (known ? known.count : 0) + 1, isChosen });
      }
    });
    return [...made.values()];
  }

  // Outcomes inside of an item, counted.
  outcomesOf(item) {
    return this.totals(item).counts;
  }

  workOf(item) {
    return this.totals(item).work;
  }

  // What is inside of an item: of calls and branches by their graphs, of groups by their children.
  totals(item) {
    if (!item.totals) item.totals = this.added(item);
    return item.totals;
  }

  added(item) {
    const { flops } = this.items.column;
    if (item.region !== undefined) return this.items.totalsOf(item.region);
    if (item.graphName !== undefined) return this.items.totalsOf(item.graphName);
    if (item.kind === "branch" || (!item.row && item.children)) return joined(item.children || item.load(), this);
    return { counts: { [item.outcome]: 1 }, work: item.row ? item.row[flops] : 0 };
  }
}

function joined(children, shown) {
  const sum = { counts: {}, work: 0 };
  for (const child of children) addTotals(sum, shown.totals(child));
  return sum;
}

function addTotals(sum, { counts, work }) {
  for (const [name, count] of Object.entries(counts)) sum.counts[name] = (sum.counts[name] || 0) + count;
  sum.work += work;
}

function isWithin(item, outer) {
  for (let at = item; at; at = at.parent) if (at === outer) return true;
  return false;
}

// The outcome that a box is coloured by: the one that a person would look for.
function mainOutcome(counts) {
  const order = ["near miss", "rewritten", "computed once", "removed", "kept"];
  return order.find((name) => counts[name]) || "kept";
}

function counted(value, unit) {
  for (const prefix of ["", "K", "M", "G", "T"]) {
    if (Math.abs(value) < 1000) return `${Number(value.toPrecision(4))} ${prefix}${unit}`;
    value /= 1000;
  }
  return `${Number(value.toPrecision(4))} P${unit}`;
}
