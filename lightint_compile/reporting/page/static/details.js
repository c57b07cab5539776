"use strict";
// What is said of one item: on hovering, and beside the graph once it is selected.

function factsOf(items, item) {
  if (!item.row) return [];
  const told = (name) => items.text(item.row, name);
  const cost = [];
  if (item.row[items.column.flops]) cost.push(counted(item.row[items.column.flops], "FLOP"));
  if (item.row[items.column.bytes]) cost.push(`${counted(item.row[items.column.bytes], "B")} moved`);
  const by = item.by || told("pass");
  return [
    ["calls", told("target")],
    ["gives", told("value")],
    ["module", told("path")],
    ["source", told("source")],
    ["cost", cost.join(", ")],
    ["outcome", item.outcome + (by && item.outcome !== "kept" ? ` by ${by}` : "")],
    ["rule", told("rule")],
  ].filter(([, text]) => text);
}

function tooltip(items, item) {
  const lines = [item.label, ...factsOf(items, item).map(([name, text]) => `${name}: ${text}`)];
  if (!item.row && item.children) lines.push(`${item.children.length} inside`);
  return lines.join("\n");
}

class Details {
  constructor(element, go) {
    Object.assign(this, { element, go });
  }

  show(items, shown, item, remarks) {
    this.items = items;
    const title = make("h3", item.label);
    const facts = make("dl");
    const counts = Object.entries(shown.outcomesOf(item));
    const told = factsOf(items, item);
    if (!item.row) told.push(["holds", counts.map(([name, count]) => `${count} ${name}`).join(", ")]);
    if (!item.row || item.region) told.push(["work", counted(shown.workOf(item), "FLOP")]);
    if (item.region) told.push(["region", `${item.region}: ${this.modules(items, item)}`]);
    for (const [name, text] of told) facts.append(make("dt", name), make("dd", text));
    this.element.replaceChildren(title, facts, ...this.links(items, item), ...this.remarks(items, item, remarks));
  }

  modules(items, item) {
    const { paths } = items.graph.after[item.region];
    const short = paths.slice(0, 3).join(", ");
    return paths.length > 3 ? `${short} and ${paths.length - 3} more` : short || "glue between modules";
  }

  links(items, item) {
    if (item.side === "b" && item.row) return this.list("lives on as", items.successors(item.before));
    if (item.side === "a" && item.before >= 0) return this.list("stands for", sources(items, item));
    return [];
  }

  list(title, ids) {
    const found = ids.slice(0, 12).map((id) => {
      const button = make("button", id.startsWith("b/") ? this.items.get(id).label : label(this.items, id));
      button.addEventListener("click", () => this.go(id));
      return button;
    });
    if (!found.length) return [];
    const more = ids.length > 12 ? [make("span", ` and ${ids.length - 12} more`)] : [];
    const line = make("p", `${title}: `);
    line.append(...found, ...more);
    return [line];
  }

  remarks(items, item, remarks) {
    if (!item.row) return [];
    const source = items.text(item.row, "source");
    return remarks
      .filter((remark) => source && remark.source === source && remark.kind !== "analysis")
      .slice(0, 4)
      .map((remark) => {
        const box = make("div", "", `remark ${remark.kind}`);
        box.append(make("p", `${remark.pass_name} ${remark.rule || ""}`, "quiet"), make("p", remark.message));
        if (remark.hint) box.append(make("p", `→ ${remark.hint}`, "hint"));
        return box;
      });
  }
}

// The captured rows that a row stands for: its own, and those that live on through it.
function sources(items, item) {
  const found = [];
  items.graph.before.stands.forEach((through, place) => {
    if (through === item.before) found.push(`b/${place}`);
  });
  return found;
}

function label(items, id) {
  const item = items.reach(id);
  return item ? item.label : id;
}

function make(tag, text = "", kind = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (kind) element.className = kind;
  return element;
}
