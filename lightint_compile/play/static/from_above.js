"use strict";
// The map: walls where there are some, the way so far, the camera and what it sees. North (+z) is up.

class FromAbove {
  constructor(canvas) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d");
    this.begin(null);
  }

  begin(walls) {
    this.walls = walls;
    this.places = [];
    this.halfView = 0.5;
    this.draw();
  }

  add(first, places, halfView) {
    this.places.length = first;
    this.places.push(...places);
    this.halfView = halfView;
    this.draw();
  }

  // What is shown: the whole place, or the way with some room around it.
  bounds() {
    if (this.walls) return { left: 0, bottom: 0, width: Math.max(this.walls.length, this.walls[0].length) };
    const xs = this.places.map((place) => place[0]), zs = this.places.map((place) => place[1]);
    const span = (values) => [Math.min(0, ...values), Math.max(0, ...values)];
    const [west, east] = span(xs), [south, north] = span(zs);
    const width = Math.max(east - west, north - south, 1) * 1.4;
    return { left: (west + east - width) / 2, bottom: (south + north - width) / 2, width };
  }

  draw() {
    const { pen, canvas } = this, side = canvas.width, shown = this.bounds(), scale = side / shown.width;
    const at = (x, z) => [(x - shown.left) * scale, side - (z - shown.bottom) * scale];
    pen.fillStyle = this.walls ? "#101218" : "#343944";
    pen.fillRect(0, 0, side, side);
    pen.fillStyle = "#343944";
    for (const [row, cells] of (this.walls || []).entries())
      for (const [column, cell] of [...cells].entries())
        if (cell === "0") pen.fillRect(...at(column, row + 1), scale, scale);
    if (!this.places.length) return;
    pen.strokeStyle = "#ffb042";
    pen.lineWidth = 2;
    pen.beginPath();
    for (const [x, z] of this.places) pen.lineTo(...at(x, z));
    pen.stroke();
    const [x, z, heading] = this.places.at(-1), here = at(x, z), reach = side / 8;
    pen.fillStyle = "rgba(255, 176, 66, 0.35)";
    pen.beginPath();
    pen.moveTo(...here);
    // headings turn from +z to +x, canvas angles from +x to +y, which is down
    pen.arc(...here, reach, heading - Math.PI / 2 - this.halfView, heading - Math.PI / 2 + this.halfView);
    pen.fill();
    pen.fillStyle = "#eceef2";
    pen.beginPath();
    pen.arc(...here, 4, 0, 2 * Math.PI);
    pen.fill();
  }
}
