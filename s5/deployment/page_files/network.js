"use strict";
// Runs a trained network: the steps of `s5/deployment/layer_graph.py`, with the weights as `s5/deployment/page.py` packs them.
//
// Maps are {channels, height, width, values}, one channel after another, row by row.

const BASE = DIGITS.length;
const DIGIT_VALUES = new Map(Array.from(DIGITS, (digit, value) => [digit, value]));

/** Whole numbers, positive and negative, from text: each group of `characters` holds so many `numbers`. */
function unpack(text, [characters, numbers]) {
  const levels = levelsOf(characters, numbers);
  const values = [];
  for (let start = 0; start < text.length; start += characters) {
    let code = 0;
    for (const digit of text.slice(start, start + characters)) code = code * BASE + DIGIT_VALUES.get(digit);
    for (let place = 0; place < numbers; place++) {
      values.push((code % levels) - (levels - 1) / 2);
      code = Math.floor(code / levels);
    }
  }
  return values;
}

/** How many different numbers there are: an odd count, half of them negative. */
function levelsOf(characters, numbers) {
  let levels = Math.round(BASE ** (characters / numbers));
  while (levels ** numbers > BASE ** characters || levels % 2 === 0) levels--;
  return levels;
}

class Network {
  /** `data` is an entry of the page's list of networks. */
  constructor(data) {
    const weights = data.weights.map((text) => unpack(text, data.packing));
    const fractions = ([exponent, text]) => unpack(text, FINE).map((value) => value * 2 ** exponent);
    this.steps = data.steps.map((step, number) => ({
      ...step,
      inputs: step.inputs ?? [number - 1],
      weight: weights[step.weight],
      scale: step.scale && fractions(step.scale),
      bias: step.bias && fractions(step.bias),
    }));
  }

  /** The output of each step for an image of SIDE × SIDE bytes; the last one holds the ten logits. */
  run(image) {
    const values = Float32Array.from(image, (value) => (value / 255 - MEAN) / STD);
    const first = { channels: 1, height: SIDE, width: SIDE, values };
    const outputs = [];
    for (const step of this.steps) {
      const inputs = step.inputs.map((number) => (number < 0 ? first : outputs[number]));
      const output = OPERATIONS[step.kind](step, ...inputs);
      if (step.relu) output.values = output.values.map((value) => Math.max(0, value));
      outputs.push(output);
    }
    return outputs;
  }
}

const OPERATIONS = {
  deskew: makeUpright,
  crop: cropMaps,
  conv: convolve,
  pool: poolMaps,
  mean: averageMaps,
  linear: weightedSums,
  add: (step, first, second) => map(first, (value, place) => value + second.values[place]),
  relu: (step, maps) => ({ ...maps }),
};

/** The image upright, in the middle and equally high: `deskew` in `s5/networks/layers.py`. */
function makeUpright({ size }, { height: side, values }) {
  const ink = Float64Array.from(values, (value) => value * STD + MEAN);
  const middle = (side - 1) / 2;
  const [x, y] = [(place) => (place % side) - middle, (place) => Math.floor(place / side) - middle];
  const total = (factor) => ink.reduce((total, value, place) => total + value * factor(place), 0);
  const mass = Math.max(1e-3, total(() => 1));
  const [centreX, centreY] = [total(x) / mass, total(y) / mass];
  const variance = total((place) => (y(place) - centreY) ** 2) / mass;
  const covariance = total((place) => (x(place) - centreX) * (y(place) - centreY)) / mass;
  const slant = between(-MAX_SLANT, covariance / Math.max(1e-3, variance), MAX_SLANT);
  const scale = between(MIN_SCALE, Math.sqrt(variance) / size, MAX_SCALE);
  const upright = values.map((_, place) => {
    const down = scale * y(place);
    const sample = sampleAt(ink, side, middle + centreX + scale * x(place) + slant * down, middle + centreY + down);
    return (sample - MEAN) / STD;
  });
  return { channels: 1, height: side, width: side, values: upright };
}

const between = (low, value, high) => Math.min(high, Math.max(low, value));

/** The value at (x, y) of a square image, by bilinear interpolation; 0 outside. */
function sampleAt(values, side, x, y) {
  const [left, top] = [Math.floor(x), Math.floor(y)];
  let sample = 0;
  for (const [column, row] of [[left, top], [left + 1, top], [left, top + 1], [left + 1, top + 1]]) {
    const isInside = column >= 0 && row >= 0 && column < side && row < side;
    if (isInside) sample += values[row * side + column] * (1 - Math.abs(x - column)) * (1 - Math.abs(y - row));
  }
  return sample;
}

/** Convolution with zero padding: each weight multiplies a shifted copy of its input map. */
function convolve({ weight, scale, bias, kernel = 1, groups = 1, stride = 1, padding = 0 }, maps) {
  const padded = padMaps(maps, padding);
  const size = padded.height * padded.width;
  const [inputs, outputs] = [maps.channels / groups, scale.length / groups];
  const result = { ...padded, channels: scale.length, values: new Float32Array(scale.length * size) };
  const sums = new Float64Array(size);
  for (let channel = 0; channel < scale.length; channel++) {
    sums.fill(0);
    for (let input = 0; input < inputs; input++) {
      const source = Math.floor(channel / outputs) * inputs + input;
      const map = padded.values.subarray(source * size, (source + 1) * size);
      for (let place = 0; place < kernel * kernel; place++) {
        const shift = Math.floor(place / kernel) * padded.width + (place % kernel);
        addShifted(sums, map, shift, weight[(channel * inputs + input) * kernel * kernel + place]);
      }
    }
    result.values.set(sums.map((total) => total * scale[channel] + bias[channel]), channel * size);
  }
  const [height, width] = [padded.height, padded.width].map((side) => Math.floor((side - kernel) / stride) + 1);
  return select(result, height, width, (y, x) => y * stride * padded.width + x * stride);
}

/** Adds `factor` times the map to the sums; the rows are one long line, so what crosses their ends is of no use. */
function addShifted(sums, map, shift, factor) {
  for (let place = 0; place < sums.length - shift; place++) sums[place] += factor * map[place + shift];
}

function padMaps(maps, padding) {
  const [height, width] = [maps.height + 2 * padding, maps.width + 2 * padding];
  const values = new Float32Array(maps.channels * height * width);
  for (let row = 0; row < maps.channels * maps.height; row++) {
    const [channel, y] = [Math.floor(row / maps.height), row % maps.height];
    const start = (channel * height + y + padding) * width + padding;
    values.set(maps.values.subarray(row * maps.width, (row + 1) * maps.width), start);
  }
  return { channels: maps.channels, height, width, values };
}

/** The maps without a border of `size` pixels. */
function cropMaps({ size }, maps) {
  return select(maps, maps.height - 2 * size, maps.width - 2 * size, (y, x) => (y + size) * maps.width + x + size);
}

/** The largest of each size × size pixels; rows and columns that do not fill a square are left out. */
function poolMaps({ size }, maps) {
  const [height, width] = [Math.floor(maps.height / size), Math.floor(maps.width / size)];
  const at = (down, right) => select(maps, height, width, (y, x) => (y * size + down) * maps.width + x * size + right);
  const result = at(0, 0);
  for (let corner = 1; corner < size * size; corner++) {
    const others = at(Math.floor(corner / size), corner % size).values;
    result.values = result.values.map((value, place) => Math.max(value, others[place]));
  }
  return result;
}

/** The mean of each map. */
function averageMaps(step, { channels, height, width, values }) {
  const count = height * width;
  const average = (_, channel) => sum(values.subarray(channel * count, (channel + 1) * count)) / count;
  return { channels, height: 1, width: 1, values: new Float32Array(channels).map(average) };
}

/** Sums of all values, weighted; the outputs are channels of one pixel. */
function weightedSums({ weight, scale, bias }, { values }) {
  const count = values.length;
  const product = (row) => values.reduce((total, value, place) => total + value * weight[row * count + place], 0);
  const outputs = scale.map((factor, row) => product(row) * factor + bias[row]);
  return { channels: outputs.length, height: 1, width: 1, values: new Float32Array(outputs) };
}

/** Maps of the given size, with the pixels that `place(y, x)` names in each channel. */
function select({ channels, values, ...size }, height, width, place) {
  const selected = new Float32Array(channels * height * width);
  let to = 0;
  for (let channel = 0; channel < channels; channel++) {
    const start = channel * size.height * size.width;
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) selected[to++] = values[start + place(y, x)];
    }
  }
  return { channels, height, width, values: selected };
}

/** The probabilities of the ten digits, which add up to 1. */
function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  return powers.map((power) => power / sum(powers));
}
