"use strict";
// Runs a trained network: the steps of `s5/deployment/layer_graph.py`, as `s5/deployment/page.py` packs them.
//
// Maps are {channels, height, width, values}, one channel after another, row by row.

const BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/** Numbers from what `pack` in page.py writes: whole numbers of a unit, each as two or three digits of base 64. */
function unpack([unit, digits, text]) {
  const middle = 64 ** digits / 2;
  return new Float32Array(text.length / digits).map((_, number) => {
    const places = Array.from(text.substr(number * digits, digits), (digit) => BASE64.indexOf(digit));
    return unit * (places.reduce((total, place) => 64 * total + place, 0) - middle);
  });
}

class Network {
  /** `data` is an entry of the page's list of networks. */
  constructor(data) {
    this.data = data;
    const weights = data.weights.map(unpack);
    this.steps = data.steps.map((step, number) => ({
      ...step,
      inputs: step.inputs ?? [number - 1],
      weight: weights[step.weight],
      scale: step.scale && unpack(step.scale),
      bias: step.bias && unpack(step.bias),
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
  conv: convolve,

  /** Without a border of `size` pixels, or with one of zeros if that is negative. */
  crop({ size }, maps) {
    const inner = (channel, y, x) => valueAt(maps, channel, y + size, x + size);
    return makeMaps(maps.channels, maps.height - 2 * size, maps.width - 2 * size, inner);
  },

  /** The largest of each 2 × 2 pixels; a row or column that is left over is left out. */
  pool(step, maps) {
    const largest = (channel, y, x) =>
      Math.max(...[0, 1, 2, 3].map((corner) => valueAt(maps, channel, 2 * y + (corner >> 1), 2 * x + (corner & 1))));
    return makeMaps(maps.channels, maps.height >> 1, maps.width >> 1, largest);
  },

  /** The mean of each map. */
  mean(step, { channels, height, width, values }) {
    const count = height * width;
    return makeMaps(channels, 1, 1, (channel) => sum(values.subarray(channel * count, (channel + 1) * count)) / count);
  },

  /** Sums of all values, weighted; the outputs are channels of one pixel. */
  linear({ weight, bias }, { values }) {
    const product = (row) =>
      values.reduce((total, value, place) => total + value * weight[row * values.length + place], 0);
    return makeMaps(bias.length, 1, 1, (row) => product(row) + bias[row]);
  },

  add(step, first, second) {
    return { ...first, values: first.values.map((value, place) => value + second.values[place]) };
  },
};

/** Maps of this size whose pixels are `value(channel, y, x)`. */
function makeMaps(channels, height, width, value) {
  const values = new Float32Array(channels * height * width);
  for (let channel = 0, place = 0; channel < channels; channel++) {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) values[place++] = value(channel, y, x);
    }
  }
  return { channels, height, width, values };
}

/** A pixel of a map; 0 outside. */
function valueAt({ height, width, values }, channel, y, x) {
  return y >= 0 && x >= 0 && y < height && x < width ? values[(channel * height + y) * width + x] : 0;
}

/** The image upright, in the middle and equally high: `deskew` in `s5/networks/layers.py`. */
function makeUpright({ size }, { height: side, values }) {
  const ink = { height: side, width: side, values: Float64Array.from(values, (value) => value * STD + MEAN) };
  const middle = (side - 1) / 2;
  const [x, y] = [(place) => (place % side) - middle, (place) => Math.floor(place / side) - middle];
  const total = (factor) => ink.values.reduce((total, value, place) => total + value * factor(place), 0);
  const mass = Math.max(1e-3, total(() => 1));
  const [centreX, centreY] = [total(x) / mass, total(y) / mass];
  const variance = total((place) => (y(place) - centreY) ** 2) / mass;
  const covariance = total((place) => (x(place) - centreX) * (y(place) - centreY)) / mass;
  const slant = between(-MAX_SLANT, covariance / Math.max(1e-3, variance), MAX_SLANT);
  const scale = between(MIN_SCALE, Math.sqrt(variance) / size, MAX_SCALE);
  return makeMaps(1, side, side, (_, row, column) => {
    const down = scale * (row - middle);
    const across = middle + centreX + scale * (column - middle) + slant * down;
    return (sampleAt(ink, across, middle + centreY + down) - MEAN) / STD;
  });
}

const between = (low, value, high) => Math.min(high, Math.max(low, value));

/** The value at (x, y) of an image, by bilinear interpolation; 0 outside. */
function sampleAt(image, x, y) {
  const [left, top] = [Math.floor(x), Math.floor(y)];
  let sample = 0;
  for (const [column, row] of [[left, top], [left + 1, top], [left, top + 1], [left + 1, top + 1]]) {
    sample += valueAt(image, 0, row, column) * (1 - Math.abs(x - column)) * (1 - Math.abs(y - row));
  }
  return sample;
}

/** Convolution with zero padding. */
function convolve({ weight, scale, bias, groups = 1, padding = 0 }, maps) {
  const [inputs, outputs] = [maps.channels / groups, scale.length];
  const kernel = Math.round(Math.sqrt(weight.length / inputs / outputs));
  const { height, width, values } = OPERATIONS.crop({ size: -padding }, maps);
  return makeMaps(outputs, height - kernel + 1, width - kernel + 1, (output, y, x) => {
    const first = Math.floor((output * groups) / outputs) * inputs;
    let [total, place] = [0, output * inputs * kernel ** 2];
    for (let input = first; input < first + inputs; input++) {
      for (let row = y; row < y + kernel; row++) {
        const start = (input * height + row) * width + x;
        for (let column = start; column < start + kernel; column++) total += weight[place++] * values[column];
      }
    }
    return total * scale[output] + bias[output];
  });
}

/** The probabilities of the ten digits, which add up to 1. */
function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  return powers.map((power) => power / sum(powers));
}
