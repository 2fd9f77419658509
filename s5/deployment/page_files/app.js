"use strict";
// The page itself: strokes in, answer out. All that is shown follows from `strokes` and `network`; `show` draws it once
// per frame.

const find = (id) => document.getElementById(id);
const networks = JSON.parse(find("networks").textContent);
const canvas = find("canvas");
const HINT = find("hint").innerText.replace(/\s+/g, " ");
const ANNOUNCEMENT_DELAY = 700; // milliseconds: screen readers are told what was drawn, not every step of it
const INPUT_COLOUR = [255, 255, 255];
const MAP_COLOUR = [255, 236, 150];

let strokes = []; // lists of points {x, y}, in pixels of the drawing
let drawing = new Drawing();
let unfinished = null; // the stroke that is being drawn
let network; // set by `chooseNetwork`
let layers; // of the network: {step, pictures}, the canvases for the maps of a step

// --- Drawing ---------------------------------------------------------------------------------------------------------

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !event.isPrimary) return;
  unfinished = [];
  strokes.push(unfinished);
  extend(event);
  canvas.setPointerCapture(event.pointerId); // so that a stroke can leave the canvas and come back
});

canvas.addEventListener("pointermove", (event) => {
  if (!unfinished || !event.isPrimary) return;
  const events = event.getCoalescedEvents?.() ?? [];
  (events.length ? events : [event]).forEach(extend);
});

canvas.addEventListener("lostpointercapture", () => (unfinished = null));

function extend(event) {
  const { left, top, width } = canvas.getBoundingClientRect();
  const scale = WORKING_SIDE / width;
  const point = { x: (event.clientX - left) * scale, y: (event.clientY - top) * scale };
  drawing.addLine(unfinished.at(-1) ?? point, point);
  unfinished.push(point);
  showSoon();
}

function keepStrokes(kept) {
  strokes = kept;
  drawing = new Drawing(kept);
  unfinished = null;
  showSoon();
}

const undo = () => keepStrokes(strokes.slice(0, -1));
const clear = () => keepStrokes([]);
onPress(find("undo"), undo);
onPress(find("clear"), clear);

/**
 * Runs `action` when the button is released: browsers leave out the click of a long press, and of a quick tap after a
 * stroke. From keyboards and screen readers the click comes alone, with a count of 0.
 */
function onPress(button, action) {
  button.addEventListener("pointerup", (event) => event.button === 0 && action());
  button.addEventListener("click", (event) => event.detail === 0 && action());
}

canvas.addEventListener("keydown", (event) => {
  const key = event.key.toLowerCase();
  const number = networks.indexOf(network.data);
  if (event.altKey || ((event.ctrlKey || event.metaKey) && key !== "z")) return; // the browser's own keys
  if (key === "z") undo();
  else if (["delete", "escape"].includes(key)) clear();
  else if (key === "arrowright") chooseNetwork((number + 1) % networks.length);
  else if (key === "arrowleft") chooseNetwork((number + networks.length - 1) % networks.length);
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
  const place = ({ x, y }) => `${x} ${y}`; // a stroke ends at its last point twice: a dot is a line without length
  const lines = strokes.map((points) => `M${[...points, points.at(-1)].map(place).join("L")}`);
  find("ink").setAttribute("d", lines.join(""));
  find("hint").hidden = strokes.length > 0;
  const { image, outputs, refusal } = read();
  paint(find("input"), INPUT_COLOUR, (place) => (image ? image[place] : 0));
  showAnswer(outputs && softmax(outputs.at(-1).values), refusal);
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

let announcing = 0;

function showAnswer(probabilities, refusal) {
  const digit = probabilities?.indexOf(Math.max(...probabilities));
  const sentence = refusal ?? `with a probability of ${percent(probabilities[digit]).replace(">", "over ")}`;
  find("digit").textContent = digit ?? "?";
  find("sentence").textContent = sentence;
  const announcement = refusal ?? `${digit}, ${sentence}`;
  clearTimeout(announcing);
  announcing = setTimeout(() => (find("announcement").textContent = announcement), ANNOUNCEMENT_DELAY);
  Array.from(find("bars").children).forEach((row, number) => {
    row.className = number === digit ? "best" : "";
    row.style.setProperty("--share", probabilities ? probabilities[number] : 0);
    row.querySelector("span").textContent = probabilities ? percent(probabilities[number]) : "–";
  });
}

/** One decimal; never 100% or 0%, since a network is never certain. */
function percent(probability) {
  const text = (100 * probability).toFixed(1);
  if (text === "100.0") return ">99.9%";
  return text === "0.0" ? "<0.1%" : `${text}%`;
}

/** Paints a layer's maps, brightest for its largest value; by the square root, to show weak ones. Dark without maps. */
function showMaps(pictures, maps) {
  const highest = maps && maximum(maps.values);
  pictures.forEach((picture, channel) => {
    const start = channel * picture.width * picture.height;
    const brightness = (place) => Math.sqrt(Math.max(0, maps.values[start + place]) / highest);
    paint(picture, MAP_COLOUR, (place) => (highest ? 255 * brightness(place) : 0));
  });
}

/** Paints a canvas with a colour [red, green, blue], as opaque as `opacity` of a pixel's place, from 0 to 255. */
function paint(picture, colour, opacity) {
  const pixels = new ImageData(picture.width, picture.height);
  for (let place = 0; 4 * place < pixels.data.length; place++) pixels.data.set([...colour, opacity(place)], 4 * place);
  picture.getContext("2d").putImageData(pixels, 0, 0);
}

// --- Networks --------------------------------------------------------------------------------------------------------

function chooseNetwork(number) {
  network = new Network(networks[number]);
  layers = makeLayers(networks[number].maps, network.run(new Uint8Array(SIDE * SIDE)));
  find("choices").querySelectorAll("input")[number].checked = true;
  find("size").textContent = networks[number].parameters.toLocaleString("en");
  showSoon();
}

function makeChoice(data, number) {
  const input = make("input", { type: "radio", name: "network" });
  input.addEventListener("change", () => chooseNetwork(number));
  const size = make("b", {}, `${data.parameters.toLocaleString("en")} parameters`);
  const accuracy = make("small", {}, `test accuracy ${data.accuracy}`);
  return make("label", { title: data.line }, input, size, accuracy, make("small", {}, data.title));
}

/** Headings and pictures for the maps of the shown steps, as large as these outputs; returns [{step, pictures}]. */
function makeLayers(shown, outputs) {
  find("layers").replaceChildren();
  return shown.map((step, number) => {
    const { channels, height, width } = outputs[step];
    const pictures = Array.from({ length: channels }, () => make("canvas", { width, height }));
    const size = make("small", {}, `${channels} maps of ${height}×${width} pixels`);
    const maps = make("div", { className: "maps", ariaHidden: "true" }, ...pictures);
    find("layers").append(make("h3", {}, `Layer ${number + 1} `, size), maps);
    return { step, pictures };
  });
}

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

// --- Start -----------------------------------------------------------------------------------------------------------

find("ink").style.strokeWidth = PEN;
for (let digit = 0; digit < 10; digit++) find("bars").append(make("li", {}, make("b", {}, digit), make("i"), make("span")));
find("choices").append(...networks.map(makeChoice));
chooseNetwork(Math.max(0, networks.findIndex((data) => data.name === "s5")));
