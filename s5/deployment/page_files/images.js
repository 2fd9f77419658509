"use strict";
// Images and numbers for preprocessing.js: what NumPy, SciPy and Pillow are for `s5/inference/preprocessing.py`.
//
// An image is {width, height, values}, row by row; beyond its edges there is nothing, 0.

// --- Images ----------------------------------------------------------------------------------------------------------

function map(image, convert) {
  return { ...image, values: image.values.map(convert) };
}

/** The part of an image from column `left` and row `top`; it may reach beyond the edges. */
function cut(image, left, top, width, height) {
  const values = new Float64Array(width * height);
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
  const turned = new Float64Array(values.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) turned[x * height + y] = values[y * width + x];
  }
  return { width: height, height: width, values: turned };
}

/** Each pixel gets the largest value of a disc around it. */
function dilate({ width, height, values }, radius) {
  const result = values.slice();
  for (let dy = -radius; dy <= radius; dy++) {
    const reach = Math.floor(Math.sqrt(radius * radius + 0.5 - dy * dy));
    for (let y = Math.max(0, -dy); y < Math.min(height, height - dy); y++) {
      for (let x = 0; x < width; x++) {
        const value = values[y * width + x];
        if (!value) continue;
        const [first, last] = [Math.max(0, x - reach), Math.min(width - 1, x + reach)];
        for (let to = (y + dy) * width + first; to <= (y + dy) * width + last; to++) {
          if (value > result[to]) result[to] = value;
        }
      }
    }
  }
  return { width, height, values: result };
}

/** The smallest or largest (`choose`) value of each square of `width` × `width` pixels; `width` is odd. */
function slide(image, width, choose) {
  const alongRows = slideRows(image, width, choose);
  return transpose(slideRows(transpose(alongRows), width, choose));
}

function slideRows({ width, height, values }, length, choose) {
  const reach = (length - 1) / 2;
  const result = values.slice();
  for (let row = 0; row < height; row++) {
    const line = new Float64Array(width + 2 * reach); // with nothing on both sides
    line.set(values.subarray(row * width, (row + 1) * width), reach);
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

// --- Numbers ---------------------------------------------------------------------------------------------------------

function maximum(values) {
  return values.reduce((a, b) => (a > b ? a : b), 0);
}

function sum(values) {
  return values.reduce((a, b) => a + b, 0);
}
