"use strict";
// Search over all operations: names, operators, modules, source lines, passes. What a region holds is found once.

const FOUND = 40;

class Search {
  constructor(field, list, status, go) {
    Object.assign(this, { field, list, status, go, index: null });
    field.addEventListener("input", () => this.look());
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && this.list.firstElementChild) this.list.querySelector("button").click();
      if (event.key === "Escape") this.clear();
    });
  }

  of(items) {
    Object.assign(this, { items, index: null });
    this.clear();
  }

  clear() {
    this.field.value = "";
    this.look();
  }

  look() {
    const words = this.field.value.toLowerCase().split(/\s+/).filter(Boolean);
    this.index = this.index || (words.length ? this.made() : null);
    const found = words.length ? this.index.filter(({ text }) => words.every((word) => text.includes(word))) : [];
    this.list.replaceChildren(...found.slice(0, FOUND).map((entry) => this.entry(entry)));
    this.list.hidden = !found.length;
    const more = found.length > FOUND ? `, ${FOUND} shown` : "";
    this.status.textContent = words.length ? `${found.length} found${more}` : "";
  }

  made() {
    const made = [];
    const note = (id, row, where) => {
      const words = ["target", "path", "source", "pass", "rule", "value", "phase"].map((name) => this.items.text(row, name));
      const name = row[this.items.column.name];
      made.push({ id, name, words, where, text: [name, where, ...words].join(" ").toLowerCase() });
    };
    this.items.graph.before.rows.forEach((row, place) => note(`b/${place}`, row, "before"));
    const seen = new Set();
    const visit = (name, prefix, where) => {
      const graph = this.items.graph.after[name];
      graph.rows.forEach((row, place) => {
        note(`${prefix}/${place}`, row, where);
        const region = graph.regions[place];
        if (region !== undefined && !seen.has(region)) {
          seen.add(region);
          visit(region, `${prefix}/${place}`, `after · ${region}`);
        }
        for (const [number, [said, side]] of (graph.branches[place] || []).entries()) {
          visit(side, `${prefix}/${place}/s${number}`, `after · ${said}`);
        }
      });
    };
    visit("", "a", "after");
    return made;
  }

  entry({ id, name, words, where }) {
    const button = make("button");
    button.append(make("b", name), make("span", ` ${where} · ${words[0]} ${words[1]}`, "quiet"));
    button.addEventListener("click", () => this.go(id));
    const entry = make("li");
    entry.append(button);
    return entry;
  }
}
