"use strict";
// Removes the printed lines of ruled paper, as `s5/inference/ruled_paper.py` does; its numbers are in RULED_PAPER.

/** The contrast of ink with the paper without the rules; `contrast` itself if there are none. */
function withoutRules(contrast) {
  const { MIN_SIDE, MIN_RULE, MIN_SHARE, INK } = RULED_PAPER;
  const level = Math.max(MIN_RULE, MIN_SHARE * maximum(contrast.values));
  if (Math.min(contrast.width, contrast.height) < MIN_SIDE) return contrast;
  if (borderPlaces(contrast).every((place) => contrast.values[place] < level)) return contrast;
  const [across, down] = [findRules(contrast, level), findRules(transpose(contrast), level)];
  const lines = Math.max(across.bands.length, down.bands.length);
  if (!lines) return contrast;
  const without = (ink) => transpose(removeRules(transpose(removeRules(contrast, across, ink)), down, ink));
  const rest = without(0);
  const least = Math.max(level, INK * maximum(rest.values));
  const strong = map(rest, (value) => value > least);
  const inks = rest.values.filter((value) => value > least);
  if (!inks.length) return lines > 2 ? map(contrast, () => 0) : contrast;
  return areRules(across, strong) || areRules(down, transpose(strong)) ? without(percentile(inks, 60)) : contrast;
}

/** By how many rows each column is shifted so that lines of this slope become rows. */
const shiftsOf = (width, slope) => (
  Array.from({ length: width }, (_, x) => roundToEven(slope * (x - (width - 1) / 2))));

/** The image with its columns shifted; NaN outside. */
function shear(image, slope) {
  const shifts = shiftsOf(image.width, slope);
  const pad = Math.max(...shifts.map(Math.abs));
  return makeImage(image.width, image.height + 2 * pad, (x, y) => {
    const row = y - pad + shifts[x];
    return row >= 0 && row < image.height ? image.values[row * image.width + x] : NaN;
  });
}

/** The nearly horizontal rules whose contrast is at least `level`: their slope and, after `shear`, their rows. */
function findRules(contrast, level) {
  const { BLOCK, SLOPES, COVERED, MAX_WIDTH } = RULED_PAPER;
  const { width, height } = contrast;
  const thick = Math.max(4, roundToEven(MAX_WIDTH * Math.min(height, width)));
  const wider = transpose(slideRows(transpose(contrast), 3, 1, Math.max, -Infinity));
  const blocks = makeImage(Math.floor(width / BLOCK), height, (x, y) => (
    sum(wider.values.subarray(y * width + x * BLOCK, y * width + (x + 1) * BLOCK)) / BLOCK));
  const strengths = SLOPES.map((slope) => (
    sum(profileOf(shear(blocks, BLOCK * slope), COVERED, thick).filter((value) => value > level))));
  const slope = SLOPES[strengths.indexOf(Math.max(...strengths))];
  const sheared = shear(contrast, slope);
  const found = profileOf(shear(wider, slope), COVERED, thick).map((value) => value > level);
  const lines = profileOf(sheared, 35, thick).map((value) => value > level / 3);
  const bands = runs(lines).filter(([first, last]) => (
    found.subarray(first, last + 1).includes(1) && last - first < thick && isBare(sheared, first, last)));
  return { slope, bands, pad: (sheared.height - height) / 2 };
}

/** [first, last] place of each run of values that are not 0. */
function runs(values) {
  const places = [...values.keys()].filter((place) => values[place]);
  const lasts = places.filter((place) => !values[place + 1]);
  return places.filter((place) => !values[place - 1]).map((first, number) => [first, lasts[number]]);
}

/** True if there is paper on both sides of most of a line. */
function isBare({ width, height, values }, first, last) {
  const reach = 2 + ((last + 1 - first) >> 1);
  const value = (row, x) => values[between(0, row, height - 1) * width + x] || 0;
  let [inked, bare] = [0, 0];
  for (let x = 0; x < width; x++) {
    let line = 0;
    for (let row = first; row <= last; row++) line = Math.max(line, value(row, x));
    if (line > 0) inked++;
    if (line > 0 && Math.max(value(first - reach, x), value(last + reach, x)) < line / 2) bare++;
  }
  return bare / inked > RULED_PAPER.BARE;
}

/** The percentile of each row without its NaN, 0 for rows of few numbers; less what is wider than `thick` rows. */
function profileOf({ width, height, values }, percent, thick) {
  const profile = new Float64Array(height);
  for (let y = 0; y < height; y++) {
    const row = values.subarray(y * width, (y + 1) * width).filter((value) => !Number.isNaN(value)).sort();
    if (row.length >= RULED_PAPER.MIN_LENGTH * width) profile[y] = row[Math.floor((row.length * percent) / 100)];
  }
  const wide = openRows({ width: height, height: 1, values: profile }, thick + 1).values;
  return profile.map((value, y) => value - wide[y]);
}

/** True if lines are rules, not strokes of a digit that fills the image, for all other ink as a mask. */
function areRules({ bands, pad }, ink) {
  const { EDGE, MIN_DIGIT } = RULED_PAPER;
  const middles = bands.map(([first, last]) => (first + last) / 2 - pad);
  const isInner = middles.some((middle) => EDGE * ink.height < middle && middle < (1 - EDGE) * ink.height);
  const { left, top, width, height } = boundingBox(ink);
  const isInside = top > 1 && top + height < ink.height - 1 && EDGE * ink.width < left &&
    left + width <= (1 - EDGE) * ink.width;
  const isDigit = isInside && Math.max(width, height) > MIN_DIGIT * Math.max(ink.width, ink.height);
  return isInner && (bands.length > 1 || isDigit);
}

/** Replaces rules by what is on both sides of them, and keeps what is clearly darker, if `ink` is. */
function removeRules(contrast, { slope, bands, pad }, ink) {
  const sheared = map(shear(contrast, slope), (value) => value || 0);
  const { width, height, values } = sheared;
  for (const [first, last] of bands) {
    const count = last - first + 1;
    const [above, below] = [Math.max(0, first - 1), Math.min(height - 1, last + 1)].map((row) => (
      values.slice(row * width, (row + 1) * width)));
    const inner = values.slice(first * width, (last + 1) * width);
    const darkest = new Float64Array(width);
    inner.forEach((value, place) => (darkest[place % width] = Math.max(darkest[place % width], value)));
    const rule = median(darkest.filter((value) => value > 0));
    const least = RULED_PAPER.DARKER * rule < ink ? rule + 0.4 * (ink - rule) : Infinity;
    const reach = roundToEven(1.5 * count) + 1;
    inner.forEach((value, place) => {
      const [x, share] = [place % width, (Math.floor(place / width) + 1) / (count + 1)];
      let filled = value > least ? value : 0;
      for (let shift = -reach; shift <= reach; shift++) {
        const [start, end] = [x + shift * -share, x + shift * (1 - share)].map((column) => (
          between(0, roundToEven(column), width - 1)));
        filled = Math.max(filled, Math.min(above[start], below[end]));
      }
      values[first * width + place] = Math.min(filled, value);
    });
  }
  const shifts = shiftsOf(width, slope);
  return makeImage(width, contrast.height, (x, y) => values[(y + pad - shifts[x]) * width + x]);
}
