"use strict";
// The page itself: strokes in, answer out. All that is shown follows from `strokes` and `network`; `show` draws it once
// per frame.

const find = (id) => document.getElementById(id);
const networks = JSON.parse(find("networks").textContent);
const canvas = find("canvas");
const HINT = find("hint").innerText.replace(/\s+/g, " ");
const ANNOUNCEMENT_DELAY = 700; // milliseconds: screen readers are told what was drawn, not every step of it

let strokes = []; // lists of points {x, y}, in pixels of the drawing
let drawing = new Drawing();
let network; // set by `chooseNetwork`
let layers; // of the network: {step, pictures}, the canvases for the maps of a step
const unfinished = new Map(); // the stroke of each pointer that is down

// --- Drawing ---------------------------------------------------------------------------------------------------------

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  const stroke = [];
  strokes.push(stroke);
  unfinished.set(event.pointerId, stroke);
  extend(stroke, event);
  canvas.setPointerCapture(event.pointerId); // so that a stroke can leave the canvas and come back
});

canvas.addEventListener("pointermove", (event) => {
  const stroke = unfinished.get(event.pointerId);
  if (!stroke || !event.buttons) return;
  const events = event.getCoalescedEvents?.() ?? [];
  (events.length ? events : [event]).forEach((each) => extend(stroke, each));
});

for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
  canvas.addEventListener(end, (event) => unfinished.delete(event.pointerId));
}

function extend(stroke, event) {
  const { left, top, width } = canvas.getBoundingClientRect();
  const scale = WORKING_SIDE / width;
  const point = { x: (event.clientX - left) * scale, y: (event.clientY - top) * scale };
  drawing.addLine(stroke.at(-1) ?? point, point);
  stroke.push(point);
  showSoon();
}

function keepStrokes(kept) {
  strokes = kept;
  drawing = new Drawing(kept);
  unfinished.clear();
  showSoon();
}

const undo = () => keepStrokes(strokes.slice(0, -1));
const clear = () => keepStrokes([]);
onPress(find("undo"), undo);
onPress(find("clear"), clear);

/**
 * Runs `action` when the button is released: browsers leave out the click of a long press, and of a quick tap after a
 * stroke. From keyboards and screen readers the click comes alone.
 */
function onPress(button, action) {
  let released = -Infinity;
  button.addEventListener("pointerup", (event) => {
    if (event.button !== 0) return;
    released = event.timeStamp;
    action();
  });
  button.addEventListener("click", (event) => {
    if (event.timeStamp - released > 500) action();
  });
}

canvas.addEventListener("keydown", (event) => {
  const key = event.key.toLowerCase();
  const number = networks.indexOf(network.data);
  if (event.altKey || ((event.ctrlKey || event.metaKey) && key !== "z")) return; // the browser's own keys
  if (key === "z") undo();
  else if (["delete", "backspace", "escape"].includes(key)) clear();
  else if (["arrowright", "arrowdown"].includes(key)) chooseNetwork((number + 1) % networks.length);
  else if (["arrowleft", "arrowup"].includes(key)) chooseNetwork((number + networks.length - 1) % networks.length);
  else if (networks[key - 1]) chooseNetwork(key - 1);
  else return;
  event.preventDefault();
});

// --- Showing ---------------------------------------------------------------------------------------------------------

let frame = 0;

function showSoon() {
  if (!frame) frame = requestAnimationFrame(show);
}

function show() {
  frame = 0;
  showStrokes();
  const { image, outputs, refusal } = read();
  const probabilities = outputs && softmax(outputs.at(-1).values);
  showInput(image);
  showAnswer(probabilities, refusal);
  showBars(probabilities);
  layers.forEach(({ step, pictures }) => showMaps(pictures, outputs?.[step]));
}

/** The network's input and outputs for the drawing, or why there are none. */
function read() {
  if (!strokes.length) return { refusal: HINT };
  try {
    const image = prepare(drawing.pixels);
    return { image, outputs: network.run(image) };
  } catch (error) {
    if (error instanceof DigitError) return { refusal: `No digit read: ${error.message}.` };
    throw error;
  }
}

function showStrokes() {
  const pixels = Math.round(canvas.clientWidth * devicePixelRatio);
  canvas.width = canvas.height = pixels; // empties it too
  const context = canvas.getContext("2d");
  context.scale(pixels / WORKING_SIDE, pixels / WORKING_SIDE);
  context.strokeStyle = getComputedStyle(canvas).getPropertyValue("--ink");
  context.lineWidth = PEN;
  context.lineCap = context.lineJoin = "round";
  for (const stroke of strokes) {
    context.beginPath();
    stroke.forEach(({ x, y }) => context.lineTo(x, y));
    context.lineTo(stroke.at(-1).x + 0.01, stroke.at(-1).y); // a line without length, a dot, would be left out
    context.stroke();
  }
  find("hint").hidden = strokes.length > 0;
}

function showInput(image) {
  paint(find("input"), (place) => (image ? Array(3).fill(image[place]) : [0, 0, 0]));
}

function showAnswer(probabilities, refusal) {
  const digit = probabilities && mostProbable(probabilities);
  const certainty = probabilities && percent(probabilities[digit]).replace(">", "over ");
  const sentence = probabilities ? `with a probability of ${certainty}` : refusal;
  find("digit").textContent = digit ?? "?";
  find("sentence").textContent = sentence;
  announce(probabilities ? `${digit}, ${sentence}` : refusal);
}

let announcing = 0;

function announce(text) {
  clearTimeout(announcing);
  announcing = setTimeout(() => (find("announcement").textContent = text), ANNOUNCEMENT_DELAY);
}

function showBars(probabilities) {
  const best = probabilities && mostProbable(probabilities);
  Array.from(find("bars").children).forEach((row, digit) => {
    row.className = digit === best ? "best" : "";
    row.style.setProperty("--share", probabilities ? probabilities[digit] : 0);
    row.querySelector("span").textContent = probabilities ? percent(probabilities[digit]) : "–";
  });
}

/** One decimal; never 100% or 0%, since a network is never certain. */
function percent(probability) {
  const text = (100 * probability).toFixed(1);
  if (text === "100.0") return ">99.9%";
  return text === "0.0" ? "<0.1%" : `${text}%`;
}

function mostProbable(probabilities) {
  return probabilities.indexOf(Math.max(...probabilities));
}

/** Paints a layer's maps, brightest for its largest value; by the square root, to show weak ones. Dark without maps. */
function showMaps(pictures, maps) {
  const highest = maps && maximum(maps.values);
  pictures.forEach((picture, channel) => {
    const start = channel * picture.width * picture.height;
    const brightness = (place) => (highest ? Math.sqrt(Math.max(0, maps.values[start + place]) / highest) : 0);
    paint(picture, (place) => PALETTE[Math.round(255 * brightness(place))]);
  });
}

/** Paints each pixel of a canvas with the colour [red, green, blue] of its place. */
function paint(picture, colourOf) {
  const pixels = new ImageData(picture.width, picture.height);
  for (let place = 0; place < picture.width * picture.height; place++) {
    const colour = colourOf(place);
    for (let band = 0; band < 3; band++) pixels.data[4 * place + band] = colour[band];
    pixels.data[4 * place + 3] = 255;
  }
  picture.getContext("2d").putImageData(pixels, 0, 0);
}

// From dark to bright, like viridis.
const COLOURS = [[43, 26, 77], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const PALETTE = Array.from({ length: 256 }, (_, number) => {
  const position = (number / 255) * (COLOURS.length - 1);
  const lower = Math.min(Math.floor(position), COLOURS.length - 2);
  return COLOURS[lower].map((low, band) => low + (COLOURS[lower + 1][band] - low) * (position - lower));
});

// --- Networks --------------------------------------------------------------------------------------------------------

function chooseNetwork(number) {
  network = new Network(networks[number]);
  layers = makeLayers(networks[number].maps, network.run(new Uint8Array(SIDE * SIDE)));
  find("choices").querySelectorAll("input")[number].checked = true;
  find("size").textContent = networks[number].parameters.toLocaleString("en");
  showSoon();
}

function makeChoices() {
  find("choices").replaceChildren(...networks.map((data, number) => {
    const input = make("input", { type: "radio", name: "network" });
    input.addEventListener("change", () => chooseNetwork(number));
    const size = make("b", {}, `${data.parameters.toLocaleString("en")} parameters`);
    const accuracy = make("small", {}, `test accuracy ${data.accuracy}`);
    return make("label", { title: data.line }, input, size, accuracy, make("small", {}, data.title));
  }));
}

function makeBars() {
  const rows = Array.from({ length: 10 }, (_, digit) => make("li", {}, make("b", {}, digit), make("i"), make("span")));
  find("bars").replaceChildren(...rows);
}

/** Headings and pictures for the maps of the shown steps, as large as these outputs; returns [{step, pictures}]. */
function makeLayers(shown, outputs) {
  const made = shown.map((step, number) => {
    const { channels, height, width } = outputs[step];
    const pictures = Array.from({ length: channels }, () => make("canvas", { width, height }));
    const size = make("small", {}, `${channels} maps of ${height}×${width} pixels`);
    const title = make("h3", {}, `Layer ${number + 1} `, size);
    const maps = make("div", { className: "maps", ariaHidden: "true" }, ...pictures);
    return { step, pictures, parts: [title, maps, moreButton(maps, channels)] };
  });
  find("layers").replaceChildren(...made.flatMap((layer) => layer.parts));
  hideNeedlessButtons();
  return made;
}

function moreButton(maps, count) {
  const button = make("button", { type: "button" });
  const label = () => (button.textContent = maps.classList.contains("all") ? "Show fewer" : `Show all ${count}`);
  button.addEventListener("click", () => {
    maps.classList.toggle("all");
    label();
  });
  label();
  return button;
}

/** Hides the buttons of layers whose maps are all visible. */
function hideNeedlessButtons() {
  document.querySelectorAll(".maps:not(.all)").forEach((maps) => {
    maps.nextElementSibling.hidden = maps.scrollHeight <= maps.clientHeight + 1;
  });
}

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

// --- Start -----------------------------------------------------------------------------------------------------------

makeBars();
makeChoices();
chooseNetwork(Math.max(0, networks.findIndex((data) => data.name === "s5")));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showSoon);
new ResizeObserver(() => {
  showSoon();
  hideNeedlessButtons();
}).observe(canvas);
