"use strict";
// Puts the page together. What is open and selected is held here; everything else is drawn from it.

const report = JSON.parse(document.getElementById("report").textContent);
const element = (id) => document.getElementById(id);
const MOST_BOXES = 200; // drawn at a time

class Page {
  constructor() {
    this.drawing = new Drawing(
      element("drawing"),
      (id) => this.select(id),
      (id) => this.toggle(id),
      (id, place) => this.hover(id, place),
    );
    this.outline = new Outline(
      element("outline"),
      (id) => this.select(id),
      (id) => this.toggle(id),
    );
    this.details = new Details(element("details"), (id) => this.go(id));
    this.search = new Search(element("search"), element("found"), element("search-status"), (id) => this.go(id));
    this.mode = "replaced";
  }

  open(number) {
    this.section = report.sections[number];
    this.items = new Items(this.section.graph);
    this.opened = new Set();
    this.selected = null;
    this.search.of(this.items);
    this.misses();
    element("details").replaceChildren(make("p", "Select a box: what it is, what it costs, and what became of it.", "quiet"));
    this.redraw();
  }

  // Draws what is open now; layout is only made when that has changed.
  redraw(anchor) {
    this.shown = this.trimmed(anchor && this.items.get(anchor));
    this.drawing.show(this.shown, this.links(), anchor);
    this.outline.show(this.shown, this.selected);
    this.marked();
  }

  // So that drawing stays fast: of too many boxes, those around what was opened first are folded again.
  trimmed(kept) {
    let shown = new Shown(this.items, this.opened);
    for (const id of [...this.opened]) {
      if (shown.boxes.length <= MOST_BOXES) break;
      if (kept && isWithin(kept, this.items.get(id))) continue;
      this.opened.delete(id);
      shown = new Shown(this.items, this.opened);
    }
    return shown;
  }

  links() {
    return this.shown.links(this.mode, this.selected && this.items.get(this.selected));
  }

  marked() {
    this.drawing.mark(this.selected);
    if (this.miss) this.showMiss();
  }

  select(id) {
    const item = this.items.get(id);
    if (!item || item.kind === "root") return;
    this.selected = id;
    this.drawing.link(this.links());
    this.outline.show(this.shown, id);
    this.marked();
    this.details.show(this.items, this.shown, item, this.section.remarks);
  }

  toggle(id) {
    const item = this.items.get(id);
    if (!item || item.kind === "root" || !this.items.childrenOf(item).length) return;
    if (!this.opened.delete(id)) this.opened.add(id);
    this.selected = id;
    this.redraw(id);
    this.drawing.bringIntoView(id);
    this.details.show(this.items, this.shown, item, this.section.remarks);
  }

  // Opens everything around an item, selects it and brings it to the middle.
  go(id) {
    const item = this.items.reach(id);
    if (!item) return;
    this.reveal(item);
    this.redraw(item.id);
    this.select(item.id);
    this.drawing.centre([item.id]);
  }

  reveal(item) {
    for (let outer = item.parent; outer && outer.kind !== "root"; outer = outer.parent) this.opened.add(outer.id);
  }

  foldAll() {
    this.opened.clear();
    this.selected = this.miss = null;
    this.redraw();
  }

  hover(id, place) {
    const tip = element("tip");
    const item = id && this.items.get(id);
    tip.hidden = !item || item.kind === "root";
    if (tip.hidden) return;
    tip.textContent = tooltip(this.items, item);
    const room = element("drawing").clientWidth - tip.offsetWidth - 12;
    tip.style.left = `${Math.max(0, Math.min(place.x + 12, room))}px`;
    tip.style.top = `${place.y + 14}px`;
  }

  misses() {
    const list = element("misses");
    this.miss = null;
    const found = this.section.graph.misses.filter((miss) => miss.matched.length || miss.stopped >= 0);
    list.replaceChildren(...found.map((miss) => this.missEntry(miss)));
    element("misses-box").hidden = !found.length;
  }

  missEntry(miss) {
    const remark = this.section.remarks[miss.remark];
    const button = make("button", `${remark.pass_name} ${remark.rule} ${remark.module_path || ""}`);
    button.addEventListener("click", () => {
      this.miss = miss;
      this.selected = null;
      for (const place of missPlaces(miss)) this.reveal(this.items.get(`b/${place}`));
      this.redraw();
      this.drawing.centre(missPlaces(miss).map((place) => `b/${place}`));
      const hint = make("p", `→ ${remark.hint || "no cure is known"}`, "hint");
      this.details.element.replaceChildren(make("h3", "near miss"), make("p", remark.message), hint);
    });
    const entry = make("li");
    entry.append(button);
    return entry;
  }

  showMiss() {
    const { matched, stopped } = this.miss;
    this.drawing.highlight(
      matched.map((place) => `b/${place}`),
      stopped >= 0 ? `b/${stopped}` : null,
    );
  }
}

function missPlaces(miss) {
  const places = miss.stopped >= 0 ? [miss.stopped, ...miss.matched] : miss.matched;
  return places.slice(0, 24);
}

function startGraph() {
  const drawn = report.sections.map((section, number) => [section, number]).filter(([section]) => section.graph);
  if (!drawn.length) {
    element("graph").hidden = true;
    return;
  }
  const page = new Page();
  const choice = element("which");
  choice.replaceChildren(...drawn.map(([section, number]) => new Option(`${number + 1}: ${section.name}`, number)));
  choice.closest("label").hidden = drawn.length < 2;
  choice.addEventListener("change", () => page.open(Number(choice.value)));
  element("links").addEventListener("change", (event) => {
    page.mode = event.target.value;
    page.redraw();
  });
  element("fit").addEventListener("click", () => page.drawing.fit());
  element("fold").addEventListener("click", () => page.foldAll());
  element("nearer").addEventListener("click", () => page.drawing.zoom(1.3));
  element("further").addEventListener("click", () => page.drawing.zoom(1 / 1.3));
  document.addEventListener("keydown", (event) => shortcut(event, page));
  const [, largest] = drawn.reduce((best, each) => (rowsIn(each[0]) > rowsIn(best[0]) ? each : best));
  choice.value = largest;
  page.open(largest);
  window.lightint = page;
}

function rowsIn(section) {
  return section.graph.before.rows.length;
}

function shortcut(event, page) {
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
  const keys = {
    "/": () => element("search").focus(),
    f: () => page.drawing.fit(),
    "+": () => page.drawing.zoom(1.3),
    "-": () => page.drawing.zoom(1 / 1.3),
  };
  if (!keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
}

startGraph();
showTimeline(element("timeline"), report.chunks, report.path);
