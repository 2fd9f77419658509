"use strict";
// Strokes become ink, one byte per pixel. The page computes this itself instead of reading it back from a canvas:
// browsers draw soft edges differently, and some add noise to what is read, to prevent tracking.

const PEN = 15; // pixels of the drawing: the width of a stroke

// Digits to try, 0 to 9: strokes of points, each two digits of x and two of y, in percent of the drawing's side.
const SAMPLES = [
  "5919 4522 4125 3830 3338 3148 3057 3166 3374 3678 4181 4782 5181 5776 6469 6763 6956 7049 7036 6729 5918",
  "4234 5817 5283",
  "3726 5119 5618 6019 6222 6426 6530 6338 5648 3282 / 3382 4379 4878 6882",
  "4221 5318 5817 6521 6826 6632 5940 5443 4645 / 4546 5746 6248 6451 6556 6561 6466 6171 5676 4582 4182 3278",
  "5917 3162 6962 / 5944 5583",
  "4417 3945 / 3846 5243 5744 6147 6452 6557 6562 6368 5874 5379 4882 4583 4282 3175 / 4319 6919",
  "6619 5422 4727 4235 3844 3550 3460 3467 3572 3675 4078 4680 5280 5678 6173 6567 6564 6157 5653 5153 3661",
  "3319 6718 4082",
  "6122 4819 4620 4325 4131 4236 4541 5449 5854 6057 6064 5775 5480 5181 4681 3979 3773 3963 4356 5742 6237 6331 6222",
  "6334 5822 5418 5019 4322 3925 3629 3536 3743 3946 4348 5147 5644 5941 6530 / 6331 6252 5962 5369 3682",
].map((text) => text.split(" / ").map((line) => line.split(" ").map(toPoint)));

function toPoint(text) {
  const [x, y] = [text.slice(0, 2), text.slice(2)].map((percent) => (percent * WORKING_SIDE) / 100);
  return { x, y };
}

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

/** Ink on white paper, as an image of brightness. */
function paperWith(ink) {
  return { width: WORKING_SIDE, height: WORKING_SIDE, values: ink.map((value) => 255 - value) };
}

function distanceToLine(x, y, from, to) {
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const share = ((x - from.x) * dx + (y - from.y) * dy) / (dx * dx + dy * dy || 1);
  const nearest = Math.min(Math.max(share, 0), 1);
  return Math.hypot(x - from.x - nearest * dx, y - from.y - nearest * dy);
}
