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
  const values = new Float32Array(width * height);
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
  const turned = new Float32Array(values.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) turned[x * height + y] = values[y * width + x];
  }
  return { width: height, height: width, values: turned };
}

/** Each pixel gets the largest value of those at `offsets`, pairs [x, y], around it. */
function dilate({ width, height, values }, offsets) {
  const result = values.slice();
  for (const [dx, dy] of offsets) {
    for (let y = Math.max(0, -dy); y < Math.min(height, height - dy); y++) {
      for (let x = Math.max(0, -dx); x < Math.min(width, width - dx); x++) {
        const [from, to] = [y * width + x, (y + dy) * width + x + dx];
        if (values[from] > result[to]) result[to] = values[from];
      }
    }
  }
  return { width, height, values: result };
}

function disc(radius) {
  return square(radius).filter(([x, y]) => x * x + y * y <= radius * radius + 0.5);
}

function diamond(radius) {
  return square(radius).filter(([x, y]) => Math.abs(x) + Math.abs(y) <= radius);
}

function square(radius) {
  const range = Array.from({ length: 2 * radius + 1 }, (_, number) => number - radius);
  return range.flatMap((y) => range.map((x) => [x, y]));
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
    const line = new Float32Array(width + 2 * reach); // with nothing on both sides
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

/** Gaussian smoothing, cut off at four standard deviations; columns first, as SciPy does. */
function blur(image, deviation) {
  const reach = Math.floor(4 * deviation + 0.5);
  const weights = Float64Array.from({ length: reach + 1 }, (_, x) => Math.exp((-0.5 / deviation ** 2) * x * x));
  const total = 2 * sum(weights) - weights[0];
  const kernel = weights.map((weight) => weight / total);
  return blurRows(transpose(blurRows(transpose(image), kernel)), kernel);
}

function blurRows(image, kernel) {
  const row = new Float64Array(image.width + 2 * kernel.length); // with nothing on both sides
  return map(image, (value, place) => {
    const x = place % image.width;
    if (x === 0) row.set(image.values.subarray(place, place + image.width), kernel.length);
    const middle = kernel.length + x;
    let blurred = value * kernel[0];
    for (let step = kernel.length - 1; step > 0; step--) {
      blurred += (row[middle - step] + row[middle + step]) * kernel[step];
    }
    return blurred;
  });
}

// --- Numbers ---------------------------------------------------------------------------------------------------------

function clip(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

function maximum(values) {
  return values.reduce((a, b) => (a > b ? a : b), 0);
}

function sum(values) {
  return values.reduce((a, b) => a + b, 0);
}

/** Rounds halves to even numbers, as Python does. */
function roundHalfEven(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
}

/** The value below which a `share` of the values lies, interpolated linearly. */
function percentile(values, share) {
  const sorted = values.slice().sort();
  const position = (sorted.length - 1) * share;
  const [low, fraction] = [sorted[Math.floor(position)], position % 1];
  const high = sorted[Math.ceil(position)];
  const difference = Math.fround(high - low);
  if (fraction < 0.5) return Math.fround(low + Math.fround(difference * fraction));
  return Math.fround(high - Math.fround(difference * (1 - fraction)));
}

/**
 * The sum in the order in which NumPy adds, `round`ed after each addition: its last bit decides where a symmetrical
 * digit is placed, whose centre is midway between two pixels.
 */
function pairwiseSum(values, round = (value) => value) {
  const count = values.length;
  if (count > 128) {
    const half = Math.floor(count / 2) - (Math.floor(count / 2) % 8);
    return round(pairwiseSum(values.slice(0, half), round) + pairwiseSum(values.slice(half), round));
  }
  const whole = count - (count % 8);
  const sums = Array.from(values.slice(0, 8));
  for (let place = 8; place < whole; place++) sums[place % 8] = round(sums[place % 8] + values[place]);
  let pairs = whole ? sums : [0];
  while (pairs.length > 1) {
    pairs = Array.from({ length: pairs.length / 2 }, (_, number) => round(pairs[2 * number] + pairs[2 * number + 1]));
  }
  return values.slice(whole).reduce((sum, value) => round(sum + value), pairs[0]);
}
