"use strict";
// Items: what can be drawn. An item is an operation, a call of a region, a branch, or a group of these that folds.
// Ids are paths: "b/12" is row 12 of the captured graph, "a/30/s1/4/2" is row 2 of the region that row 4 calls, in
// side 1 of the branch at row 30 of the root. Children of calls and branches are made when they are first opened.

const MANY = 60; // children of one group; more are put into runs
const RUN = 40; // children of a run
const REPEATS = 4; // calls of one region in a row that become a group
const NOT_DRAWN = -1;
const OTHER = "operations";
const PHASES = ["inputs", "decide", "once", "context", "prefill"]; // in front of the steps

function rank(phase) {
  const place = PHASES.indexOf(phase);
  const step = phase.match(/^step (\d+)$/);
  return place >= 0 ? place : step ? PHASES.length + Number(step[1]) : Infinity;
}

class Items {
  constructor(graph) {
    this.graph = graph;
    this.column = Object.fromEntries(graph.columns.map((name, place) => [name, place]));
    this.all = new Map();
    this.sums = new Map();
    this.before = this.add({ id: "before", side: "b", label: "before", kind: "root" }, null);
    this.after = this.add({ id: "after", side: "a", label: "after", kind: "root" }, null);
    this.fill(this.before, this.captured());
    this.fill(this.after, this.rowsOf("", "a", this.after));
    this.standing = this.stands();
  }

  text(row, name) {
    return this.graph.texts[row[this.column[name]]];
  }

  add(item, parent) {
    const made = Object.assign({ parent, children: null, load: null, row: null, outcome: "kept", by: "" }, item);
    this.all.set(made.id, made);
    return made;
  }

  get(id) {
    return this.all.get(id);
  }

  // The item of an id, or of the longest part of it that has been made.
  nearest(id) {
    for (let path = id; path; path = path.slice(0, path.lastIndexOf("/"))) {
      if (this.all.has(path)) return this.all.get(path);
      if (!path.includes("/")) break;
    }
    return null;
  }

  childrenOf(item) {
    if (item.children === null && item.load) item.children = item.load();
    return item.children || [];
  }

  // Makes every item on the way to an id.
  reach(id) {
    const parts = id.split("/");
    for (let length = 2; length <= parts.length; length++) {
      const item = this.all.get(parts.slice(0, length).join("/"));
      if (item && length < parts.length) this.childrenOf(item);
    }
    return this.nearest(id);
  }

  captured() {
    const { rows, outcomes, passes } = this.graph.before;
    const missed = new Set(this.graph.misses.flatMap((miss) => (miss.settled ? [] : [...miss.matched, miss.stopped])));
    return rows.map((row, place) =>
      this.add(
        {
          id: `b/${place}`,
          side: "b",
          label: row[this.column.name],
          kind: this.text(row, "kind"),
          row,
          before: place,
          outcome: outcomes[place] === "kept" && missed.has(place) ? "near miss" : outcomes[place],
          by: passes[place],
        },
        null,
      ),
    );
  }

  // The rows of a graph after the passes; the root alone has its inputs. Edges are between ids of one prefix.
  rowsOf(name, prefix, parent, origins) {
    const graph = this.graph.after[name];
    const made = [];
    graph.rows.forEach((row, place) => {
      const kind = this.text(row, "kind");
      const id = `${prefix}/${place}`;
      const before = origins ? origins[place] : graph.origins[place];
      const by = this.text(row, "pass");
      const outcome = this.outcomeOf(row);
      const item = this.add({ id, side: "a", label: row[this.column.name], kind, row, before, outcome, by }, parent);
      this.foldable(item, graph, place);
      made.push(item);
    });
    return made;
  }

  outcomeOf(row) {
    const by = this.text(row, "pass");
    if (this.text(row, "kind") === "decision" || (by && by !== "outline-regions")) return "rewritten";
    return this.text(row, "phase") === "once" ? "computed once" : "kept";
  }

  // Outcomes and FLOPs of a graph, with those of the regions and branches that it calls.
  totalsOf(name) {
    if (!this.sums.has(name)) {
      const { rows, regions, branches } = this.graph.after[name];
      const sum = { counts: {}, work: 0 };
      rows.forEach((row, place) => {
        const inner = regions[place] === undefined ? (branches[place] || []).map(([, side]) => side) : [regions[place]];
        if (!inner.length) addTotals(sum, { counts: { [this.outcomeOf(row)]: 1 }, work: row[this.column.flops] });
        for (const graph of inner) addTotals(sum, this.totalsOf(graph));
      });
      this.sums.set(name, sum);
    }
    return this.sums.get(name);
  }

  foldable(item, graph, place) {
    const region = graph.regions[place];
    const sides = graph.branches[place];
    if (region !== undefined) {
      item.region = region;
      item.load = () => this.arranged(item, this.rowsOf(region, item.id, item, graph.calls[place]));
    } else if (sides && sides.length) {
      item.load = () => sides.map(([said, name], number) => this.side(item, said, name, number));
    }
  }

  side(branch, said, name, number) {
    const item = { id: `${branch.id}/s${number}`, side: "a", label: said, kind: "side", graphName: name };
    const made = this.add(item, branch);
    made.load = () => this.arranged(made, this.rowsOf(name, made.id, made));
    return made;
  }

  // Groups by phase, then by module, then in runs.
  fill(root, items) {
    const phases = new Map();
    for (const item of items) {
      const phase = item.kind === "input" ? "inputs" : this.text(item.row, "phase") || OTHER;
      if (!phases.has(phase)) phases.set(phase, []);
      phases.get(phase).push(item);
    }
    const groups = [...phases].sort(([a], [b]) => rank(a) - rank(b)).map(([phase, members]) => this.group(root, phase, members));
    root.children = groups.length === 1 ? this.adopt(root, groups[0].children) : groups;
  }

  group(parent, label, members) {
    const id = `${parent.id}:${label}`;
    const made = this.add({ id, side: parent.side, label, kind: "group" }, parent);
    made.children = this.arranged(made, members);
    return made;
  }

  arranged(parent, members) {
    const arranged = parent.side === "b" ? this.byModule(parent, members, 0) : this.repeats(parent, members);
    return this.adopt(parent, arranged.length > MANY ? this.runs(parent, arranged) : arranged);
  }

  adopt(parent, children) {
    for (const child of children) child.parent = parent;
    return children;
  }

  // Captured operations by module: a chain of modules with one child each is one group.
  byModule(parent, members, depth) {
    const place = (item) => (this.text(item.row, "path") || "").split(".").filter(Boolean)[depth];
    if (members.length < 2) return members;
    const found = [];
    for (const item of members) {
      const name = place(item);
      const last = found[found.length - 1];
      if (name !== undefined && last && last.name === name) last.members.push(item);
      else found.push({ name, members: [item] });
    }
    if (found.length === 1 && found[0].name !== undefined) {
      if (parent.row === null && depth && parent.kind === "group") parent.label += `.${found[0].name}`;
      return this.byModule(parent, members, depth + 1);
    }
    return found.flatMap(({ name, members: inner }, number) => {
      if (name === undefined || inner.length < 2) return inner;
      const id = `${parent.id}:${name}.${number}`;
      const made = this.add({ id, side: parent.side, label: name, kind: "group" }, parent);
      const children = this.byModule(made, inner, depth + 1);
      made.children = this.adopt(made, children.length > MANY ? this.runs(made, children) : children);
      return [made];
    });
  }

  // Calls of one region in a row, with what stands between them, as "54 x block_1".
  repeats(parent, members) {
    const found = [];
    let run = null;
    for (const item of members) {
      if (item.region !== undefined && run && run.region === item.region) {
        run.members.push(...run.between, item);
        run.between = [];
        run.calls += 1;
      } else if (item.region === undefined && item.kind === "operation" && run) {
        run.between.push(item);
      } else {
        run = this.closed(found, run);
        if (item.region !== undefined) run = { region: item.region, members: [item], between: [], calls: 1 };
        else found.push([item]);
      }
    }
    this.closed(found, run);
    return found.flatMap((part) => (Array.isArray(part) ? part : this.repeated(parent, part)));
  }

  closed(found, run) {
    if (run) found.push(run.calls >= REPEATS ? run : run.members, run.between);
    return null;
  }

  repeated(parent, run) {
    const id = `${parent.id}:${run.members[0].id}x`;
    const made = this.add({ id, side: "a", label: `${run.calls} × ${run.region}`, kind: "group" }, parent);
    made.children = this.adopt(made, run.members.length > MANY ? this.runs(made, run.members) : run.members);
    return [made];
  }

  runs(parent, children) {
    const size = Math.max(RUN, Math.ceil(children.length / RUN));
    const found = [];
    for (let first = 0; first < children.length; first += size) {
      const part = children.slice(first, first + size);
      const label = `${part[0].label} … ${part[part.length - 1].label}`;
      const made = this.add({ id: `${parent.id}:run${first}`, side: parent.side, label, kind: "group" }, parent);
      made.children = this.adopt(made, part);
      found.push(made);
    }
    return found;
  }

  // Ids of what stands for each captured row now.
  stands() {
    const found = new Map();
    const note = (place, id) => {
      if (place === NOT_DRAWN) return;
      if (!found.has(place)) found.set(place, []);
      found.get(place).push(id);
    };
    const visit = (name, prefix) => {
      const graph = this.graph.after[name];
      graph.origins.forEach((place, own) => {
        if (!graph.calls[own]) note(place, `${prefix}/${own}`);
      });
      for (const [own, origins] of Object.entries(graph.calls)) {
        origins.forEach((place, inner) => note(place, `${prefix}/${own}/${inner}`));
      }
      for (const [own, sides] of Object.entries(graph.branches)) {
        sides.forEach(([, side], number) => visit(side, `${prefix}/${own}/s${number}`));
      }
    };
    visit("", "a");
    return found;
  }

  // Where a captured row lives on, as ids.
  successors(place) {
    const through = this.graph.before.stands[place];
    return through === NOT_DRAWN ? [] : this.standing.get(through) || [];
  }
}
