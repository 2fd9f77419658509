"use strict";
// Images and numbers for preprocessing.js: what NumPy, SciPy and Pillow are for `s5/inference/preprocessing.py`.
//
// An image is {width, height, values}, row by row, the values in a typed array; beyond its edges there is nothing, 0.

// --- Images ----------------------------------------------------------------------------------------------------------

function map(image, convert) {
  return { ...image, values: image.values.map(convert) };
}

/** The part of an image from column `left` and row `top`; it may reach beyond the edges. */
function cut(image, left, top, width, height) {
  const values = new image.values.constructor(width * height);
  const [first, last] = [Math.max(0, left), Math.min(image.width, left + width)];
  for (let y = Math.max(0, top); y < Math.min(image.height, top + height); y++) {
    const row = image.values.subarray(y * image.width + first, y * image.width + last);
    values.set(row, (y - top) * width + first - left);
  }
  return { width, height, values };
}

/** The part of an image that is not 0, and a margin. */
function crop(image, margin = 0) {
  const { left, top, width, height } = boundingBox(image);
  return cut(image, left - margin, top - margin, width + 2 * margin, height + 2 * margin);
}

/** Where the image is not 0. */
function boundingBox(image) {
  const [columns, rows] = [usedColumns(image), usedColumns(transpose(image))];
  const [left, top] = [columns.indexOf(1), rows.indexOf(1)];
  return { left, top, width: columns.lastIndexOf(1) - left + 1, height: rows.lastIndexOf(1) - top + 1 };
}

/** 1 for each column that is not 0 throughout, otherwise 0. */
function usedColumns({ width, values }) {
  const columns = new Uint8Array(width);
  for (let start = 0; start < values.length; start += width) {
    for (let x = 0; x < width; x++) if (values[start + x]) columns[x] = 1;
  }
  return columns;
}

function transpose({ width, height, values }) {
  const turned = new values.constructor(values.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) turned[x * height + y] = values[y * width + x];
  }
  return { width: height, height: width, values: turned };
}

/** Each pixel gets the largest value of a disc around it or of another shape: `reach(dy)` is half of a row's width. */
function dilate({ width, height, values }, radius, reach = (dy) => Math.floor(Math.sqrt(radius ** 2 + 0.5 - dy ** 2))) {
  const result = values.slice();
  for (let dy = -radius; dy <= radius; dy++) {
    for (let y = Math.max(0, -dy); y < Math.min(height, height - dy); y++) {
      for (let x = 0; x < width; x++) {
        const value = values[y * width + x];
        if (!value) continue;
        const [first, last] = [Math.max(0, x - reach(dy)), Math.min(width - 1, x + reach(dy))];
        for (let to = (y + dy) * width + first; to <= (y + dy) * width + last; to++) {
          if (value > result[to]) result[to] = value;
        }
      }
    }
  }
  return { width, height, values: result };
}

/**
 * A morphological opening with squares of `side` × `side` pixels: removes all bright that is narrower. Around the image
 * is `beyond`: 0, or Infinity for more of the same.
 */
function open(image, side, beyond) {
  const both = (image, ...how) => transpose(slideRows(transpose(slideRows(image, side, ...how)), side, ...how));
  const eroded = both(image, side >> 1, Math.min, beyond);
  return maximum(eroded.values) ? both(eroded, (side - 1) >> 1, Math.max, -Infinity) : eroded;
}

/** The opening of each row by itself. */
function openRows(image, side) {
  return slideRows(slideRows(image, side, side >> 1, Math.min, Infinity), side, (side - 1) >> 1, Math.max, -Infinity);
}

/** The smallest or largest (`choose`) of `length` values, from `before` on the left of each on; outside is `beyond`. */
function slideRows({ width, height, values }, length, before, choose, beyond) {
  const result = values.slice();
  for (let row = 0; row < height; row++) {
    const line = new Float64Array(width + length - 1).fill(beyond);
    line.set(values.subarray(row * width, (row + 1) * width), before);
    let covered = 1; // line[x] is the choice of `covered` values from x on
    while (covered < length) {
      const step = Math.min(covered, length - covered);
      for (let x = 0; x + step < line.length; x++) line[x] = choose(line[x], line[x + step]);
      covered += step;
    }
    result.set(line.subarray(0, width), row * width);
  }
  return { width, height, values: result };
}

/** An image whose pixels are `value(x, y)`. */
function makeImage(width, height, value) {
  const values = new Float64Array(width * height);
  for (let y = 0, place = 0; y < height; y++) {
    for (let x = 0; x < width; x++) values[place++] = value(x, y);
  }
  return { width, height, values };
}

/** The places of the outermost pixels, the corners twice. */
function borderPlaces({ width, height }) {
  const across = Array.from({ length: width }, (_, x) => [x, (height - 1) * width + x]);
  return [...across, ...Array.from({ length: height }, (_, y) => [y * width, y * width + width - 1])].flat();
}

// --- Numbers ---------------------------------------------------------------------------------------------------------

function maximum(values) {
  return values.reduce((a, b) => (a > b ? a : b), 0);
}

function minimum(values) {
  return values.reduce((a, b) => (a < b ? a : b));
}

function sum(values) {
  return values.reduce((a, b) => a + b, 0);
}

/** Value at `percent` of the sorted numbers, interpolated. */
function percentile(values, percent) {
  const sorted = values.slice().sort();
  const place = (percent / 100) * (sorted.length - 1);
  const low = Math.floor(place);
  const [below, above] = [sorted[low], sorted[Math.min(low + 1, sorted.length - 1)]];
  const share = place - low;
  return share < 0.5 ? below + (above - below) * share : above - (above - below) * (1 - share);
}

const median = (values) => percentile(values, 50);

/** Rounded to the nearest whole number; halves to an even one. */
function roundToEven(number) {
  const rounded = Math.round(number);
  return rounded - number === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}
