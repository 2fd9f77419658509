"use strict";
// Strokes become ink, one byte per pixel. The page computes this itself instead of reading it back from a canvas:
// browsers draw soft edges differently, and some add noise to what is read, to prevent tracking.

const PEN = 15; // pixels of the drawing: the width of a stroke

/** A drawing of WORKING_SIDE × WORKING_SIDE pixels; `pixels` holds the ink, from 0 to 255, row by row. */
class Drawing {
  /** A stroke is a list of points {x, y}; a single one is a dot. */
  constructor(strokes = []) {
    this.pixels = new Uint8Array(WORKING_SIDE * WORKING_SIDE);
    strokes.forEach((points) => points.forEach((point, number) => this.addLine(points[number - 1] ?? point, point)));
  }

  /** Adds a line with round ends. The outermost pixels stay empty: they are the paper around the digit. */
  addLine(from, to) {
    const reach = PEN / 2 + 1;
    const first = (a, b) => Math.max(1, Math.floor(Math.min(a, b) - reach));
    const last = (a, b) => Math.min(WORKING_SIDE - 2, Math.ceil(Math.max(a, b) + reach));
    for (let y = first(from.y, to.y); y <= last(from.y, to.y); y++) {
      for (let x = first(from.x, to.x); x <= last(from.x, to.x); x++) {
        const covered = PEN / 2 + 0.5 - distanceToLine(x + 0.5, y + 0.5, from, to); // a soft edge, one pixel wide
        const place = y * WORKING_SIDE + x;
        this.pixels[place] = Math.max(this.pixels[place], Math.round(255 * Math.min(Math.max(covered, 0), 1)));
      }
    }
  }
}

function distanceToLine(x, y, from, to) {
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const share = ((x - from.x) * dx + (y - from.y) * dy) / (dx * dx + dy * dy || 1);
  const nearest = Math.min(Math.max(share, 0), 1);
  return Math.hypot(x - from.x - nearest * dx, y - from.y - nearest * dy);
}
