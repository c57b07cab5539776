"use strict";
// The outline: the same boxes as a tree that a keyboard and a screen reader can walk.

class Outline {
  constructor(element, onSelect, onToggle) {
    Object.assign(this, { element, onSelect, onToggle, rows: [], at: null });
    element.addEventListener("keydown", (event) => this.key(event));
    element.addEventListener("click", (event) => this.click(event));
  }

  show(shown, selected) {
    const hadFocus = this.element.contains(document.activeElement);
    this.shown = shown;
    this.rows = shown.boxes.map(({ item, level, isOpen }) => this.row(item, level, isOpen, selected));
    this.element.replaceChildren(...this.rows);
    const current = this.rows.find((row) => row.dataset.id === selected) || this.rows[0];
    if (current) current.tabIndex = 0;
    if (hadFocus && current) current.focus({ preventScroll: true });
    if (current && selected) this.reveal(current);
  }

  reveal(row) {
    const [box, own] = [this.element.getBoundingClientRect(), row.getBoundingClientRect()];
    if (own.top < box.top || own.bottom > box.bottom) this.element.scrollTop += own.top - box.top - box.height / 3;
  }

  row(item, level, isOpen, selected) {
    const row = document.createElement("div");
    row.setAttribute("role", "treeitem");
    row.setAttribute("aria-level", level + 1);
    row.setAttribute("aria-selected", item.id === selected);
    if (item.load || (item.children && item.children.length)) row.setAttribute("aria-expanded", isOpen);
    row.dataset.id = item.id;
    row.tabIndex = -1;
    row.style.paddingInlineStart = `${0.4 + level * 0.9}rem`;
    const outcome = mainOutcome(this.shown.outcomesOf(item));
    const dot = document.createElement("span");
    dot.className = `dot ${outcome.replace(" ", "-")}`;
    const said = item.kind !== "root" && outcome !== "kept" ? `, ${outcome}` : "";
    const name = document.createElement("span");
    name.textContent = item.label;
    const note = document.createElement("span");
    note.className = "sr";
    note.textContent = said;
    row.append(dot, name, note);
    return row;
  }

  click(event) {
    const row = event.target.closest("[role=treeitem]");
    if (!row) return;
    const isFold = row.hasAttribute("aria-expanded") && event.offsetX < 24 && event.target === row;
    if (isFold || row.dataset.id === this.at) this.onToggle(row.dataset.id);
    else this.onSelect(row.dataset.id);
    this.at = row.dataset.id;
  }

  key(event) {
    const row = event.target.closest("[role=treeitem]");
    if (!row) return;
    const place = this.rows.indexOf(row);
    const isOpen = row.getAttribute("aria-expanded");
    const level = (each) => Number(each.getAttribute("aria-level"));
    const moves = {
      ArrowDown: () => this.focus(place + 1),
      ArrowUp: () => this.focus(place - 1),
      Home: () => this.focus(0),
      End: () => this.focus(this.rows.length - 1),
      Enter: () => this.onSelect(row.dataset.id),
      " ": () => this.onToggle(row.dataset.id),
      ArrowRight: () => (isOpen === "false" ? this.onToggle(row.dataset.id) : this.focus(place + 1)),
      ArrowLeft: () =>
        isOpen === "true"
          ? this.onToggle(row.dataset.id)
          : this.focus(this.rows.slice(0, place).findLastIndex((each) => level(each) < level(row))),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
  }

  focus(place) {
    const row = this.rows[Math.min(Math.max(place, 0), this.rows.length - 1)];
    for (const each of this.rows) each.tabIndex = each === row ? 0 : -1;
    row.focus();
  }
}
