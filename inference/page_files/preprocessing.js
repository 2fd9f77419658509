"use strict";
// Converts a drawing to an image like those of MNIST. Step by step the same as `inference/preprocessing.py`, pixel by
// pixel equal to it for ink on clean paper: so numbers are rounded to float32 (Math.fround) where NumPy does.
//
// An image is {width, height, values}, row by row; beyond its edges there is nothing, 0.

/** No single digit was found; the message says why. */
class DigitError extends Error {}

/** The drawing is empty. */
class NoInkError extends DigitError {}

/** The image that a network receives, 28 × 28 bytes, of a drawing of WORKING_SIDE × WORKING_SIDE bytes of ink. */
function prepare(ink) {
  const small = fitIntoBox(crop(findInk(ink)));
  const largest = maximum(small.values);
  small.values = small.values.map((value) => clip(Math.fround(value / largest), 0, 1));
  return centre(small);
}

/** The amount of ink per pixel, from 0 to 1. Thin strokes are widened. */
function findInk(ink) {
  const drawing = crop({ width: WORKING_SIDE, height: WORKING_SIDE, values: new Float32Array(ink) }, 1);
  const contrast = withoutPaper(map(drawing, (value) => 1 - Math.fround((255 - value) / 255)));
  if (maximum(contrast.values) < Math.fround(MIN_CONTRAST)) {
    throw new NoInkError("no ink found: the image is empty or of a single colour");
  }
  const threshold = otsu(contrast.values, ink.length);
  let mask = map(contrast, (value) => value > threshold);
  if (sum(mask.values) / ink.length > MAX_INK || texture(mask) / ink.length > MAX_TEXTURE) {
    throw new DigitError("ink nearly everywhere: the digit cannot be separated from its background");
  }
  mask = withoutSpecks(mask);
  checkSingleDigit(mask);
  const full = percentile(contrast.values.filter((_, place) => mask.values[place]), 0.75);
  const range = Math.max(Math.fround(full - threshold / 2), 1e-6);
  const near = dilate(mask, diamond(2)).values;
  const soft = (value) => clip(Math.fround(Math.fround(value - threshold / 2) / range), 0, 1);
  return widen(map(contrast, (value, place) => (near[place] ? soft(value) : 0)), mask);
}

/** Darkness minus that of the paper: a morphological opening, which removes all that is narrower than a third. */
function withoutPaper(darkness) {
  const width = Math.floor(WORKING_SIDE / 3);
  const eroded = slide(darkness, width, Math.min);
  if (maximum(eroded.values) === 0) return darkness; // no blot: the usual case
  const paper = slide(eroded, width, Math.max);
  const smooth = blur(paper, width / 4).values;
  return map(darkness, (value, place) => Math.max(0, value - Math.max(paper.values[place], smooth[place])));
}

/**
 * The threshold that maximises the variance between the two classes it separates (Otsu, 1979). There are `count` values
 * in all; those that are not given are 0.
 */
function otsu(values, count) {
  const [bins, largest] = [256, maximum(values)];
  const step = Math.fround(largest / bins);
  const edges = Float32Array.from({ length: bins + 1 }, (_, bin) => (bin < bins ? bin * step : largest));
  const counts = new Float64Array(bins);
  counts[0] = count - values.length;
  for (const value of values) {
    let bin = Math.min(bins - 1, Math.floor((value / largest) * bins));
    if (value < edges[bin]) bin--;
    else if (bin < bins - 1 && value >= edges[bin + 1]) bin++;
    counts[bin]++;
  }
  const middles = edges.map((edge, bin) => Math.fround(edge + edges[bin + 1]) / 2);
  const sums = counts.map((number, bin) => number * middles[bin]);
  const total = sum(sums);
  let [below, sumBelow, best, highest] = [0, 0, 0, -1];
  for (let bin = 0; bin < bins - 1; bin++) {
    below += counts[bin];
    sumBelow += sums[bin];
    const above = count - below;
    const between = below * above * (sumBelow / below - (total - sumBelow) / above) ** 2;
    if (between > highest) [best, highest] = [bin, between];
  }
  return middles[best];
}

/** The number of pixels that a median filter of 3 × 3 pixels changes. */
function texture({ width, values }) {
  const rows = values.map((value, place) => values[place - 1] + value + values[place + 1]);
  const isChanged = (value, place) => value !== Number(rows[place - width] + rows[place] + rows[place + width] > 4);
  return sum(values.map(isChanged));
}

/** The mask without parts that are much smaller than the largest: dirt. */
function withoutSpecks(mask) {
  const parts = connectedParts(mask);
  const largest = Math.max(...parts.map((part) => part.length));
  const values = new Float32Array(mask.values.length);
  for (const part of parts) {
    if (part.length >= MIN_PART * largest) part.forEach((place) => (values[place] = 1));
  }
  return { ...mask, values };
}

/** Lists of the places of pixels that touch each other, at the corners too. */
function connectedParts({ width, values }) {
  const left = values.slice();
  const steps = [-1, 1, -width, width, -width - 1, -width + 1, width - 1, width + 1];
  const parts = [];
  for (let start = 0; start < left.length; start++) {
    if (!left[start]) continue;
    const part = [start];
    left[start] = 0;
    for (let next = 0; next < part.length; next++) {
      for (const step of steps) {
        const place = part[next] + step;
        if (left[place]) part.push(place);
        left[place] = 0;
      }
    }
    parts.push(part);
  }
  return parts;
}

/** Throws DigitError if the ink is wider than a digit, or consists of several parts nearly as large as the whole. */
function checkSingleDigit(mask) {
  const { width, height } = boundingBox(mask);
  if (width > MAX_ASPECT * height) {
    throw new DigitError("the ink is wider than a digit: crop the image to a single digit");
  }
  const besides = separateParts(mask).filter((part) => part.height > 0.6 * height);
  const isLarge = (part) => part.height > 0.4 * width && part.width > 0.3 * height; // in the transposed image
  const stacked = separateParts(transpose(mask)).filter(isLarge);
  if (besides.length > 1 || (height > 1.8 * width && stacked.length > 1)) {
    throw new DigitError("several digits found: crop the image to one of them");
  }
}

/** The bounding box of each part of the mask that empty columns separate from the others. */
function separateParts(mask) {
  const isUsed = usedColumns(mask);
  const starts = [...isUsed.keys()].filter((x) => isUsed[x] && !isUsed[x - 1]);
  return starts.map((left) => boundingBox(cut(mask, left, 0, isUsed.indexOf(0, left) - left, mask.height)));
}

/** The ink with strokes at least MIN_STROKE wide, measured in the box that the digit will be scaled to. */
function widen(ink, mask) {
  const { width, height } = boundingBox(mask);
  const size = Math.max(width, height);
  const distances = distancesToEdge(mask);
  const mean = pairwiseSum(distances) / distances.length; // in a bar, a quarter of its width
  const stroke = (4 * mean * BOX) / size;
  if (stroke >= MIN_STROKE) return ink;
  const radius = Math.max(1, roundHalfEven((((MIN_STROKE - stroke) / 2) * size) / BOX));
  return dilate(crop(ink, radius), disc(radius));
}

/** The distance of each pixel of the mask to the nearest one outside. */
function distancesToEdge({ width, values }) {
  const vertical = new Float64Array(values.length); // in the same column
  values.forEach((isInk, place) => (vertical[place] = isInk && vertical[place - width] + 1));
  for (let place = values.length - width - 1; place >= 0; place--) {
    vertical[place] = Math.min(vertical[place], vertical[place + width] + 1);
  }
  const distances = [];
  vertical.forEach((distance, place) => {
    let nearest = distance ** 2;
    for (let step = 1; step * step < nearest; step++) {
      const closer = Math.min(vertical[place - step], vertical[place + step]);
      nearest = Math.min(nearest, step * step + closer ** 2);
    }
    if (distance) distances.push(Math.sqrt(nearest));
  });
  return distances;
}

/** Scales an image to fit BOX × BOX pixels, as Pillow does: mean of the pixels, or bicubic if it is enlarged. */
function fitIntoBox(image) {
  const scale = BOX / Math.max(image.width, image.height);
  const size = (side) => Math.max(1, roundHalfEven(side * scale));
  const [kernel, support] = scale < 1 ? [box, 0.5] : [bicubic, 2];
  const narrow = resizeWidth(image, size(image.width), kernel, support);
  return transpose(resizeWidth(transpose(narrow), size(image.height), kernel, support));
}

function resizeWidth({ width, height, values }, newWidth, kernel, support) {
  const scale = width / newWidth;
  const stretch = Math.max(scale, 1);
  const result = new Float32Array(newWidth * height);
  for (let x = 0; x < newWidth; x++) {
    const middle = (x + 0.5) * scale;
    const first = Math.max(0, Math.trunc(middle - support * stretch + 0.5));
    const last = Math.min(width, Math.trunc(middle + support * stretch + 0.5));
    const weights = [];
    for (let from = first; from < last; from++) weights.push(kernel((from - middle + 0.5) * (1 / stretch)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    for (let y = 0; y < height; y++) {
      result[y * newWidth + x] = weights.reduce(
        (sum, weight, number) => sum + values[y * width + first + number] * (weight / total), 0);
    }
  }
  return { width: newWidth, height, values: result };
}

function box(x) {
  return x > -0.5 && x <= 0.5 ? 1 : 0;
}

function bicubic(x) {
  const [a, distance] = [-0.5, Math.abs(x)];
  if (distance < 1) return ((a + 2) * distance - (a + 3)) * distance * distance + 1;
  return distance < 2 ? (((distance - 5) * distance + 8) * distance - 4) * a : 0;
}

/** The image with its centre of mass in the middle of SIDE × SIDE bytes. */
function centre({ width, height, values }) {
  const mass = pairwiseSum(values, Math.fround);
  const place = (coordinate) => {
    const centreOfMass = pairwiseSum(Array.from(values, (value, number) => value * coordinate(number))) / mass;
    return roundHalfEven(1.5 * SIDE - 0.5 - centreOfMass) - SIDE;
  };
  const top = place((number) => Math.floor(number / width));
  const left = place((number) => number % width);
  const centred = cut({ width, height, values }, -left, -top, SIDE, SIDE);
  return Uint8Array.from(centred.values, (value) => roundHalfEven(value * 255));
}

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
