"use strict";
// Runs a trained network: the steps of `s5/deployment/layer_graph.py`, as `s5/deployment/page.py` packs them.
//
// Maps are {channels, height, width, values}, one channel after another, row by row.

/** Numbers from what `pack` in page.py writes: int16 in base64, times their unit. */
function unpack([unit, text]) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return Float32Array.from(new Int16Array(bytes.buffer), (value) => value * unit);
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

/** Convolution with zero padding. */
function convolve({ weight, scale, bias, groups = 1, stride = 1, padding = 0 }, { channels, height, width, values }) {
  const [inputs, outputs] = [channels / groups, scale.length];
  const kernel = Math.round(Math.sqrt(weight.length / inputs / outputs));
  const [rows, columns] = [height, width].map((side) => Math.floor((side + 2 * padding - kernel) / stride) + 1);
  const result = { channels: outputs, height: rows, width: columns, values: new Float32Array(outputs * rows * columns) };
  const sums = new Float64Array(rows * columns);
  for (let output = 0; output < outputs; output++) {
    const first = Math.floor((output * groups) / outputs) * inputs;
    sums.fill(0);
    for (let place = 0; place < inputs * kernel * kernel; place++) {
      const input = Math.floor(place / kernel ** 2);
      const [down, right] = [Math.floor(place / kernel) % kernel, place % kernel];
      const factor = weight[output * inputs * kernel * kernel + place];
      for (let row = 0; row < rows; row++) {
        const y = row * stride + down - padding;
        if (y < 0 || y >= height) continue;
        const start = ((first + input) * height + y) * width;
        for (let column = 0; column < columns; column++) {
          const x = column * stride + right - padding;
          if (x >= 0 && x < width) sums[row * columns + column] += factor * values[start + x];
        }
      }
    }
    result.values.set(sums.map((total) => total * scale[output] + bias[output]), output * rows * columns);
  }
  return result;
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
function weightedSums({ weight, bias }, { values }) {
  const count = values.length;
  const product = (row) => values.reduce((total, value, place) => total + value * weight[row * count + place], 0);
  const outputs = Array.from(bias, (offset, row) => product(row) + offset);
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
