"use strict";
// Converts an image to one like those of MNIST. Step by step the same as `s5/inference/preprocessing.py` with
// `digit_parts.py`, pixel by pixel equal to it.

/** No single digit was found; the message says why. */
class DigitError extends Error {}

/** The image that a network receives, 28 × 28 bytes, of an image of brightness in bytes. */
function prepare(grey) {
  return centre(fitIntoBox(crop(findInk(grey))));
}

/** The amount of ink per pixel, from 0 to 1. Thin strokes are widened. */
function findInk(grey) {
  const { width, height, values } = grey;
  const edge = median(Float64Array.from(borderPlaces(grey), (place) => values[place]));
  const isDarkInk = 2 * edge > minimum(values) + maximum(values);
  const dark = new Float64Array(values).map((value) => (isDarkInk ? 255 - value : value));
  const isClear = borderPlaces(grey).every((place) => !dark[place]); // as in a drawing: only the digit is looked at
  const darkness = isClear ? crop({ width, height, values: dark }, 1) : { width, height, values: dark };
  const size = Math.max(width, height);
  const beyond = size < 2 * MIN_WORKING_SIDE ? 0 : Infinity; // paper, or what is in the shade at the edge of a photo
  const paper = open(darkness, Math.max(3, Math.floor(size / 3)), beyond).values;
  const contrast = map(darkness, (value, place) => value - paper[place]);
  const blank = withoutRules(contrast);
  if (maximum(blank.values) < MIN_CONTRAST) {
    throw new DigitError("no ink found: the image is empty, of a single colour or too pale");
  }
  const level = otsu(blank.values, values.length);
  const inked = map(blank, (value) => value > level);
  if (sum(inked.values) > MAX_INK * values.length || texture(inked) > MAX_TEXTURE * values.length) {
    throw new DigitError("ink nearly everywhere: the digit cannot be separated from its background");
  }
  return inkOf(crop(withoutEdge(blank, inked, blank !== contrast), 1), values.length);
}

/** As `findInk`, of contrast with the paper in an image of `count` pixels; those left out are 0. */
function inkOf(contrast, count) {
  const threshold = otsu(contrast.values, count);
  const mask = withoutSpecks(insideOfFrame(map(contrast, (value) => value > threshold)));
  checkSingleDigit(mask);
  const inks = contrast.values.filter((_, place) => mask.values[place]).sort();
  const full = inks[Math.floor((inks.length - 1) * 0.75)];
  const near = dilate(mask, 2).values;
  const soft = (value) => between(0, (value - threshold / 2) / (full - threshold / 2), 1);
  return widen(map(contrast, (value, place) => (near[place] ? soft(value) : 0)), mask);
}

/** The contrast without the ink that touches the edge: dark corners of a photo, or remains of rules. */
function withoutEdge(contrast, mask, isRuled) {
  const { width, height, values } = mask;
  const isEdge = (place) => (
    place % width === 0 || place % width === width - 1 || place < width || place >= values.length - width);
  const outer = withParts(mask, connectedParts(mask).filter((part) => part.some(isEdge)));
  const inner = map(mask, (value, place) => value - outer.values[place]);
  const [outerSize, innerSize] = [sum(outer.values), sum(inner.values)];
  if (isRuled && outerSize > innerSize) {
    throw new DigitError("lines of ruled paper cannot be separated from the digit: use blank paper or a darker pen");
  }
  if (!outerSize || 2 * innerSize < outerSize || boundingBox(inner).height - 1 < MIN_SHARE * height) return contrast;
  const near = dilate(outer, 3, (dy) => 3 - Math.abs(dy)).values;
  return map(contrast, (value, place) => (near[place] ? 0 : value));
}

/**
 * The threshold that maximises the variance between the two classes it separates (Otsu, 1979), for whole numbers below
 * 256. There are `count` in all; those that are not given are 0.
 */
function otsu(values, count) {
  const counts = new Float64Array(256);
  counts[0] = count - values.length;
  values.forEach((value) => counts[value]++);
  const total = sum(values);
  let [below, sumBelow, best, highest] = [0, 0, 0, 0];
  counts.forEach((number, value) => {
    below += number;
    sumBelow += number * value;
    const above = count - below;
    const between = below * above * (sumBelow / below - (total - sumBelow) / above) ** 2;
    if (between > highest) [best, highest] = [value, between];
  });
  return best;
}

/** The number of pixels that a median filter of 3 × 3 pixels changes. */
function texture(mask) {
  const inside = (length) => (place) => between(0, place, length - 1);
  const [column, row] = [inside(mask.width), inside(mask.height)];
  const at = (x, y) => mask.values[row(y) * mask.width + column(x)];
  const rows = makeImage(mask.width, mask.height, (x, y) => at(x - 1, y) + at(x, y) + at(x + 1, y));
  const whole = (x, y) => [y - 1, y, y + 1].reduce((total, line) => total + rows.values[row(line) * mask.width + x], 0);
  return sum(makeImage(mask.width, mask.height, (x, y) => at(x, y) !== Number(whole(x, y) > 4)).values);
}

/**
 * The ink inside a frame, such as the box of a form or a circle; all ink if there is no frame. A frame is a box or about
 * as wide as high, and encloses ink of a digit's size that it does not touch. Throws DigitError if there is ink of this
 * size outside too, and for a box of thin lines without such ink.
 */
function insideOfFrame(mask) {
  const parts = connectedParts(mask).map((places) => ({ places, ...extent(places, mask.width) }));
  const areas = parts.map((part) => part.width * part.height);
  const frame = parts[areas.indexOf(Math.max(...areas))];
  const { width, height } = frame;
  const enclosed = withoutHoles(withParts(mask, [frame.places])).values;
  const filled = sum(enclosed);
  const isBox = filled > MIN_BOX * height * width && Math.min(height, width) > 0.5 * Math.max(height, width);
  const isThinBox = isBox && frame.places.length < MAX_LINES * height * width;
  const least = isThinBox ? MIN_INSIDE_BOX : MIN_INSIDE;
  const others = parts.filter((part) => part !== frame);
  const digits = others.filter((part) => (
    enclosed[part.places[0]] && part.height >= least * height && part.places.length >= MIN_PART * frame.places.length));
  if (digits.length && (isBox || (0.8 * height < width && width < 1.25 * height))) {
    const highest = Math.max(...digits.map((part) => part.height));
    if (others.some((part) => !enclosed[part.places[0]] && part.height > 0.6 * highest)) {
      throw new DigitError("several digits found: crop the image to one of them");
    }
    const inside = others.filter((part) => enclosed[part.places[0]]).map((part) => part.places);
    return insideOfFrame(withParts(mask, inside));
  }
  if (isThinBox) {
    throw new DigitError("a frame without a separate digit inside: crop the image to the digit");
  }
  return mask;
}

/** Width and height of a list of places. */
function extent(places, width) {
  const side = (numbers) => maximum(numbers) - minimum(numbers) + 1;
  const [columns, rows] = [places.map((place) => place % width), places.map((place) => Math.floor(place / width))];
  return { width: side(columns), height: side(rows) };
}

/** The mask without parts that are much smaller than the largest: dirt. */
function withoutSpecks(mask) {
  const parts = connectedParts(mask);
  const largest = Math.max(...parts.map((part) => part.length));
  return withParts(mask, parts.filter((part) => part.length >= MIN_PART * largest));
}

/** A mask of the size of `mask` that is 1 at the places of these parts. */
function withParts(mask, parts) {
  const values = new Float32Array(mask.values.length);
  for (const part of parts) part.forEach((place) => (values[place] = 1));
  return { ...mask, values };
}

/** The mask and what it encloses. */
function withoutHoles(mask) {
  const around = map(cut(mask, -1, -1, mask.width + 2, mask.height + 2), (value) => 1 - value);
  const [outside] = connectedParts(around, false);
  const filled = map(withParts(around, [outside]), (value) => 1 - value);
  return cut(filled, 1, 1, mask.width, mask.height);
}

/** Lists of the places of pixels that are not 0 and touch each other: at the sides or, with `corners`, there too. */
function connectedParts(mask, corners = true) {
  const width = mask.width + 2; // with nothing all around
  const left = cut(mask, -1, -1, width, mask.height + 2).values;
  const steps = [-1, 1, -width, width];
  if (corners) steps.push(-width - 1, -width + 1, width - 1, width + 1);
  const parts = [];
  const found = new Int32Array(left.length);
  let [first, last] = [0, 0]; // of the part, in `found`
  for (let start = 0; start < left.length; start++) {
    if (!left[start]) continue;
    first = last;
    found[last++] = start;
    left[start] = 0;
    for (let next = first; next < last; next++) {
      for (let number = 0; number < steps.length; number++) {
        const place = found[next] + steps[number];
        if (!left[place]) continue;
        found[last++] = place;
        left[place] = 0;
      }
    }
    parts.push(found.slice(first, last).map((place) => place - mask.width - 1 - 2 * Math.floor(place / width)));
  }
  return parts;
}

/** Throws DigitError if the ink is too small, wide or full for a digit, or several parts nearly as large as all. */
function checkSingleDigit(mask) {
  const { width, height } = boundingBox(mask);
  if (Math.max(width, height) < MIN_HEIGHT) {
    throw new DigitError("the digit is too small: crop the image closer to it");
  }
  if (width > MAX_ASPECT * height) {
    throw new DigitError("the ink is wider than a digit: crop the image to a single digit");
  }
  if (isSolid(mask)) throw new DigitError("the ink is a filled shape: crop the image to the digit inside it");
  const besides = separateParts(mask).filter((part) => part.height > 0.6 * height);
  const isLarge = (part) => part.height > 0.4 * width && part.width > 0.3 * height; // in the transposed image
  const stacked = separateParts(transpose(mask)).filter(isLarge);
  if (besides.length > 1 || (height > 1.8 * width && stacked.length > 1)) {
    throw new DigitError("several digits found: crop the image to one of them");
  }
}

/**
 * True for ink without gaps, whatever its tilt. Its area, relative to the product of its standard deviations along its
 * two axes, is 12 for any rectangle and 4 π for any ellipse, and less for what has gaps.
 */
function isSolid({ width, values }) {
  const places = [...values.keys()].filter((place) => values[place]);
  const coordinates = [places.map((place) => place % width), places.map((place) => Math.floor(place / width))];
  const means = coordinates.map((numbers) => sum(numbers) / places.length);
  const covariance = (a, b) => (
    sum(places.map((_, i) => (coordinates[a][i] - means[a]) * (coordinates[b][i] - means[b]))) / places.length);
  const [xx, yy, xy] = [covariance(0, 0) + 1 / 12, covariance(1, 1) + 1 / 12, covariance(0, 1)];
  const spread = Math.hypot((xx - yy) / 2, xy);
  const [short, long] = [Math.sqrt((xx + yy) / 2 - spread), Math.sqrt((xx + yy) / 2 + spread)];
  return short > MIN_ROUND * long && places.length > MAX_SOLIDITY * short * long;
}

/** The bounding box of each part of the mask that empty columns separate from the others. */
function separateParts(mask) {
  const part = ([first, last]) => boundingBox(cut(mask, first, 0, last - first + 1, mask.height));
  return runs(usedColumns(mask)).map(part);
}

/** The ink with strokes at least MIN_STROKE wide, measured in the box that the digit will be scaled to. */
function widen(ink, mask) {
  const { width, height } = boundingBox(mask);
  const size = Math.max(width, height);
  const stroke = (strokeWidth(mask) * BOX) / size;
  if (stroke >= MIN_STROKE) return ink;
  const radius = Math.max(1, Math.floor((((MIN_STROKE - stroke) / 2) * size) / BOX + 0.5));
  return dilate(crop(ink, radius), radius);
}

/** The mean width of the strokes of a mask: twice the area by the length of the edge (by Crofton). */
function strokeWidth({ width, values }) {
  const isEdge = (value, place) => (value !== (values[place - 1] ?? 0)) + (value !== (values[place - width] ?? 0));
  return (2 * sum(values)) / ((Math.PI / 4) * sum(values.map(isEdge)));
}

/** Scales an image to fit BOX × BOX pixels. */
function fitIntoBox(image) {
  const scale = BOX / Math.max(image.width, image.height);
  const size = (side) => Math.max(1, Math.floor(side * scale + 0.5));
  return resize({ ...image, values: Float32Array.from(image.values) }, size(image.width), size(image.height));
}

/** As Pillow does, with numbers of the same type: mean of the pixels, or bilinear if the image is enlarged. */
function resize(image, width, height) {
  const filter = Math.max(width, height) < Math.max(image.width, image.height) ? [box, 0.5] : [triangle, 1];
  return transpose(resizeWidth(transpose(resizeWidth(image, width, ...filter)), height, ...filter));
}

function resizeWidth({ width, height, values }, newWidth, kernel, support) {
  const scale = width / newWidth;
  const stretch = Math.max(scale, 1);
  const isBytes = values instanceof Uint8Array;
  const unit = isBytes ? 2 ** 22 : 1; // Pillow computes bytes in whole numbers
  const rounded = isBytes ? (value) => Math.floor(value + 0.5) : (value) => value;
  const result = new values.constructor(newWidth * height);
  for (let x = 0; x < newWidth; x++) {
    const middle = (x + 0.5) * scale;
    const first = Math.max(0, Math.trunc(middle - support * stretch + 0.5));
    const last = Math.min(width, Math.trunc(middle + support * stretch + 0.5));
    const weights = [];
    for (let from = first; from < last; from++) weights.push(kernel((from - middle + 0.5) * (1 / stretch)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    const shares = weights.map((weight) => rounded((weight / total) * unit));
    for (let y = 0; y < height; y++) {
      const add = (sum, weight, number) => sum + values[y * width + first + number] * weight;
      result[y * newWidth + x] = rounded(shares.reduce(add, 0) / unit);
    }
  }
  return { width: newWidth, height, values: result };
}

const box = (x) => (x > -0.5 && x <= 0.5 ? 1 : 0);

const triangle = (x) => Math.max(0, 1 - Math.abs(x));

/** The image with its centre of mass in the middle of SIDE × SIDE bytes, the largest of them 255. */
function centre({ width, height, values }) {
  const [mass, largest] = [sum(values), maximum(values)];
  const place = (coordinate) => {
    const centreOfMass = sum(values.map((value, number) => value * coordinate(number))) / mass;
    return Math.floor(1.5 * SIDE - Math.round(centreOfMass * 1e6) / 1e6) - SIDE; // as if rounding had no errors
  };
  const top = place((number) => Math.floor(number / width));
  const left = place((number) => number % width);
  const centred = cut({ width, height, values }, -left, -top, SIDE, SIDE);
  return Uint8Array.from(centred.values, (value) => (value / largest) * 255 + 0.5);
}
