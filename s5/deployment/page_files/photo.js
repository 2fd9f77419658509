"use strict";
// Photos: their brightness, and a sheet of paper on a darker table seen from above. The same as `to_grey` and
// `cut_out_sheet` in `s5/inference/preprocessing.py` with `sheet.py`, whose numbers are in SHEET.

/** Brightness of an image {width, height, data}, RGBA: of its sheet of paper, else of all of it. */
function cutOutSheet(photo) {
  const grey = toGrey(photo, WORKING_SIDE);
  const corners = Math.min(photo.width, photo.height) >= WORKING_SIDE && findSheet(grey);
  if (!corners) return grey;
  if (Math.abs(corners[1].y - corners[0].y) > MAX_TURN * (corners[1].x - corners[0].x)) {
    throw new DigitError("the sheet of paper is turned too far: turn the photo so that the digit is upright");
  }
  const longest = Math.max(...sidesOf(corners));
  const larger = toGrey(photo, roundToEven((WORKING_SIDE * Math.max(grey.width, grey.height)) / longest));
  const [across, down] = [larger.width / grey.width, larger.height / grey.height];
  return straighten(larger, corners.map(({ x, y }) => ({ x: (x + 0.5) * across - 0.5, y: (y + 0.5) * down - 0.5 })));
}

/** The lengths of the sides that start at these corners. */
function sidesOf(corners) {
  return corners.map(({ x, y }, number) => Math.hypot(corners.at(number - 3).x - x, corners.at(number - 3).y - y));
}

/** Brightness in bytes, the longer side at most `side` pixels; small images are enlarged. */
function toGrey({ width, height, data }, side) {
  const bandOf = (number) => new Uint8Array(width * height).map((_, i) => data[4 * i + number]);
  const [red, green, blue, opacity] = [0, 1, 2, 3].map(bandOf);
  const toSize = (values) => fitInto({ width, height, values }, side);
  const brightness = (r, g, b) => r.map((_, i) => (19595 * r[i] + 38470 * g[i] + 7471 * b[i] + 32768) >> 16);
  if (opacity.some((value) => value < 255)) {
    const grey = brightness(red, green, blue);
    const visible = grey.reduce((total, value, i) => total + (value - 127) * (opacity[i] + 1e-9), 0);
    const paper = visible > 0 ? 0 : 255;
    return toSize(grey.map((value, i) => (value * opacity[i] + paper * (255 - opacity[i])) / 255 + 0.5));
  }
  const bands = [red, green, blue].map(toSize);
  const images = [{ ...bands[0], values: brightness(...bands.map((band) => band.values)) }, ...bands];
  const contrasts = images.map(({ values }) => percentile(values, 99) - percentile(values, 1));
  const best = firstLargest(contrasts);
  return contrasts[best] > 2 * contrasts[0] ? images[best] : images[0];
}

/** The image reduced to at most `side` pixels, as Pillow's `thumbnail` does, or enlarged to MIN_WORKING_SIDE. */
function fitInto(image, side) {
  const { width, height } = image;
  const [longer, aspect] = [Math.max(width, height), width / height];
  const factor = Math.ceil(MIN_WORKING_SIDE / longer);
  if (longer <= side) return factor < 2 ? image : resize(image, factor * width, factor * height);
  const isWide = width > height;
  const exact = isWide ? side / aspect : side * aspect;
  const misfit = (size) => Math.abs(aspect - (isWide ? side / size : size / side));
  const [low, high] = [Math.floor(exact), Math.ceil(exact)];
  const shorter = low && misfit(high) < misfit(low) ? high : Math.max(1, low);
  return isWide ? resize(image, side, shorter) : resize(image, shorter, side);
}

/** The corners {x, y} of the sheet, clockwise from the top left; null if there is none. */
function findSheet(grey) {
  let [found, most] = [null, 0];
  for (const lit of [grey, evenlyLit(grey)]) {
    const highest = maximum(lit.values);
    for (let threshold = minimum(lit.values); threshold < highest; threshold += SHEET.STEP) {
      const corners = quadrilateral(map(lit, (value) => value > threshold));
      const contrast = corners ? contrastOf(grey, corners) : 0;
      if (contrast > most) [found, most] = [corners, contrast];
    }
  }
  if (!found) return null;
  const widths = found.map(({ x }, number) => found.at(number - 3).x - x);
  const first = firstLargest(widths);
  return [...found.slice(first), ...found.slice(0, first)];
}

/** The photo divided by a plane fitted to its border: as if the light did not change from side to side. */
function evenlyLit(grey) {
  const { width, height, values } = grey;
  const places = borderPlaces(grey);
  const x = (place) => (place % width) - (width - 1) / 2;
  const y = (place) => Math.floor(place / width) - (height - 1) / 2;
  const slope = (coordinate) => (
    sum(places.map((place) => coordinate(place) * values[place])) / sum(places.map((place) => coordinate(place) ** 2)));
  const [across, down, mean] = [slope(x), slope(y), sum(places.map((place) => values[place])) / places.length];
  const light = (place) => Math.max(1, mean + across * x(place) + down * y(place));
  const lit = new Float64Array(values).map((value, place) => value / light(place));
  const brightest = maximum(lit) || 1;
  return { width, height, values: new Uint8Array(lit.map((value) => (255 * value) / brightest + 0.5)) };
}

/** The corners of the largest region of a mask if it is a sheet with ink; else null. */
function quadrilateral(bright) {
  const { MIN_TABLE, MAX_BRIGHT, MIN_SHEET, MIN_INK, MAX_INK, MAX_MISFIT } = SHEET;
  const { width, values } = bright;
  const places = borderPlaces(bright);
  if (sum(places.map((place) => values[place])) > (1 - MIN_TABLE) * places.length) return null;
  const sheet = connectedParts(bright, false).reduce((a, b) => (b.length > a.length ? b : a));
  if (sheet.length < (1 - MAX_INK) * MIN_SHEET * values.length) return null; // as will be found below
  const filled = withoutHoles(withParts(bright, [sheet])).values;
  const area = sum(filled);
  const others = values.reduce((total, value, place) => total + (value && !filled[place]), 0);
  const isLarge = area > MIN_SHEET * filled.length && others < MAX_BRIGHT * (filled.length - area);
  if (!isLarge || !(MIN_INK * area < area - sheet.length && area - sheet.length < MAX_INK * area)) return null;
  const [lefts, rights] = [[], []];
  for (let y = 0; y < bright.height; y++) {
    const row = filled.subarray(y * width, (y + 1) * width);
    if (row.includes(1)) lefts.push({ x: row.indexOf(1), y });
    if (row.includes(1)) rights.push({ x: row.lastIndexOf(1), y });
  }
  const points = [...lefts, ...rights];
  const farthest = (distance) => points[firstLargest(points.map(distance))];
  const distanceFrom = (middle) => ({ x, y }) => (x - middle.x) ** 2 + (y - middle.y) ** 2;
  const mean = (axis) => sum(points.map((point) => point[axis])) / points.length;
  const first = farthest(distanceFrom({ x: mean("x"), y: mean("y") }));
  const corners = [first, first, farthest(distanceFrom(first)), first];
  for (const number of [1, 3, 0, 2, 1, 3, 0, 2, 1, 3]) { // the point that is farthest from the line of its neighbours
    const [from, to] = [corners.at(number - 1), corners.at(number - 3)];
    corners[number] = farthest((point) => -side(from, to, point));
  }
  const isInside = (place) => corners.every((corner, number) => (
    side(corner, corners.at(number - 3), { x: place % width, y: Math.floor(place / width) }) >= 0));
  const misfit = filled.reduce((total, value, place) => total + (value !== Number(isInside(place))), 0);
  return misfit < MAX_MISFIT * area ? corners : null;
}

/** Positive for a point on the right of the line between two others, as seen on the screen. */
const side = (from, to, { x, y }) => (to.x - from.x) * (y - from.y) - (to.y - from.y) * (x - from.x);

const firstLargest = (numbers) => numbers.indexOf(Math.max(...numbers));

/** By how much brightness falls at the sides of a quadrilateral, relative to it, in all; 0 if it hardly does at one. */
function contrastOf(grey, corners) {
  const falls = [];
  corners.forEach((start, number) => {
    const end = corners.at(number - 3);
    const [dx, dy] = [end.x - start.x, end.y - start.y];
    const length = Math.max(1, Math.hypot(dx, dy));
    const levels = [];
    for (const distance of SHEET.DISTANCES) {
      const beside = [];
      const pixels = distance * Math.max(grey.width, grey.height);
      for (let step = 0; step <= 32; step++) {
        const share = 0.1 + step * 0.025;
        const x = Math.floor(start.x + share * dx + pixels * (dy / length) + 0.5);
        const y = Math.floor(start.y + share * dy + pixels * (-dx / length) + 0.5);
        if (x >= 0 && y >= 0 && x < grey.width && y < grey.height) beside.push(grey.values[y * grey.width + x]);
      }
      if (beside.length > 16) levels.push(median(Float64Array.from(beside)));
    }
    if (levels.length > 1) falls.push(1 - Math.max(...levels.slice(1)) / levels[0]);
  });
  return falls.length && Math.min(...falls) > SHEET.MIN_CONTRAST ? sum(falls) : 0;
}

/** The quadrilateral with these corners as a rectangle, without its rim, by Pillow's map of a quadrilateral. */
function straighten(grey, corners) {
  const sides = sidesOf(corners);
  const [width, height] = [0, 1].map((number) => Math.max(1, Math.trunc((sides[number] + sides[number + 2]) / 2)));
  const coefficients = ["x", "y"].map((axis) => {
    const mean = corners.reduce((total, corner) => total + corner[axis], 0) / 4;
    const [a, b, c, d] = corners.map((corner) => corner[axis] + 2 * SHEET.RIM * (mean - corner[axis]) + 0.5);
    return [a, (b - a) * (1 / width), (d - a) * (1 / height), (c - d - b + a) * (1 / width) * (1 / height)];
  });
  const value = (x, y) => grey.values[between(0, y, grey.height - 1) * grey.width + between(0, x, grey.width - 1)];
  return map(makeImage(width, height, (column, row) => {
    const [u, v] = [column + 0.5, row + 0.5];
    const [x, y] = coefficients.map(([a, b, c, d]) => a + b * u + c * v + d * u * v - 0.5);
    const [left, top] = [Math.floor(x), Math.floor(y)];
    const [above, below] = [top, top + 1].map((line) => (
      value(left, line) + (value(left + 1, line) - value(left, line)) * (x - left)));
    return above + (below - above) * (y - top);
  }), Math.trunc);
}
