"use strict";
// The page itself: strokes in, answers out. The ink is shown in the next frame; the answers follow, from a worker.

const find = (id) => document.getElementById(id);
const networks = JSON.parse(find("networks").textContent);
const canvas = find("canvas");
const HINT = find("hint").innerText.replace(/\s+/g, " ");
const ANNOUNCEMENT_DELAY = 700; // milliseconds: screen readers are told what was drawn, not every step of it
const MAX_PHOTO = 2048; // pixels of the longer side; larger photos are reduced by the browser
const INPUT_COLOUR = [255, 255, 255];
const MAP_COLOUR = [255, 236, 150];

let content = { strokes: [] }; // on the canvas: lists of points {x, y}, in pixels of the drawing; a photo or its problem
const past = []; // earlier contents, for undo
let drawing = new Drawing();
let unfinished = null; // the stroke that is being drawn
let selected; // the number of the network whose answer is shown in full
let layers; // of this network: lists of canvases for its maps

// --- Drawing ---------------------------------------------------------------------------------------------------------

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !event.isPrimary) return;
  const stroke = [];
  change({ strokes: [...content.strokes, stroke] });
  unfinished = stroke;
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

function change(next) {
  past.push(content);
  restore(next);
}

function restore(next) {
  content = next;
  drawing = new Drawing(content.strokes);
  unfinished = null;
  showSoon();
}

const isEmpty = () => !content.strokes.length && !content.photo;
const undo = () => past.length && restore(past.pop());
const clear = () => isEmpty() || change({ strokes: [] });
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
  if (event.altKey || ((event.ctrlKey || event.metaKey) && key !== "z")) return; // the browser's own keys
  if (key === "z") undo();
  else if (["delete", "escape"].includes(key)) clear();
  else if (key === "arrowright") chooseNetwork((selected + 1) % networks.length);
  else if (key === "arrowleft") chooseNetwork((selected + networks.length - 1) % networks.length);
  else if (networks[key - 1]) chooseNetwork(key - 1);
  else return;
  event.preventDefault();
});

function makeSample(strokes, digit) {
  const button = make("button", { type: "button", ariaLabel: `Sample: ${digit}` });
  button.innerHTML = `<svg viewBox="40 30 176 196" aria-hidden="true"><path d="${pathOf(strokes)}"/></svg>`;
  onPress(button, () => change({ strokes }));
  return button;
}

// --- Photos ----------------------------------------------------------------------------------------------------------

/** Puts a photo on the canvas, an image file, or says why not. */
async function openPhoto(file) {
  if (!file) return;
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) return change({ strokes: [], problem: `${file.name} is no image that this browser can open.` });
  const scale = Math.min(1, MAX_PHOTO / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(scale * side)));
  const context = make("canvas", { width, height }).getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  change({ strokes: [], photo: context.getImageData(0, 0, width, height) });
  showAnswer({ refusal: "Reading the photo …" });
}

document.querySelectorAll("input[type=file]").forEach((input) => input.addEventListener("change", () => {
  openPhoto(input.files[0]);
  input.value = ""; // so that the same file can be chosen again
}));
document.addEventListener("paste", (event) => openPhoto(event.clipboardData.files[0]));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  openPhoto(event.dataTransfer.files[0]);
});

// --- Showing ---------------------------------------------------------------------------------------------------------

let frame = 0;
let version = 0; // of the content: the number of its changes
let answers = []; // of the networks, to this version
let sent = 0; // the version that the worker knows
let asked = null; // {number, version}: the question that the worker is answering

function showSoon() {
  version++;
  answers = [];
  if (!frame) frame = requestAnimationFrame(show);
}

function show() {
  frame = 0;
  find("ink").setAttribute("d", pathOf(content.strokes));
  find("hint").hidden = !isEmpty();
  const { width = 1, height = 1 } = content.photo ?? {};
  Object.assign(find("photo"), { width, height, hidden: !content.photo });
  if (content.photo) find("photo").getContext("2d").putImageData(content.photo, 0, 0);
  if (isEmpty()) answers = networks.map(() => ({ refusal: content.problem ?? HINT }));
  showAnswers();
  ask();
}

function pathOf(strokes) {
  const place = ({ x, y }) => `${x} ${y}`; // a stroke ends at its last point twice: a dot is a line without length
  return strokes.map((points) => `M${[...points, points.at(-1)].map(place).join("L")}`).join("");
}

/** Asks the worker for the next missing answer, the shown network's first. One question at a time: none grows old. */
function ask() {
  const number = [selected, ...networks.keys()].find((number) => !answers[number]);
  if (asked || isEmpty() || number === undefined) return;
  asked = { number, version };
  worker.postMessage({ number, ...(sent === version ? {} : { ink: drawing.pixels, photo: content.photo }) });
  sent = version;
}

function receive({ data }) {
  const answer = data.refusal ? { refusal: `No digit read: ${reasonOf(data.refusal)}.` } : data;
  if (asked.version !== version) {
    if (asked.number === selected && unfinished) showAnswer(answer); // of a moment ago, while a stroke is drawn
  } else if (data.refusal) {
    answers = networks.map(() => answer);
  } else {
    answers[asked.number] = answer;
  }
  asked = null;
  showAnswers();
  ask();
}

/** Of "several digits found: crop the image …" the first half for a drawing, which cannot be cropped. */
const reasonOf = (message) => (content.photo ? message : message.split(": ")[0]);

function showAnswers() {
  if (answers[selected] && answers[selected] !== shown) showAnswer(answers[selected]);
  Array.from(find("all").children).forEach((item, number) => {
    const answer = answers[number];
    item.className = `${number === selected ? "best" : ""} ${answer ? "" : "old"}`;
    if (answer) item.querySelector("b").textContent = answer.refusal ? "–" : briefly(answer.probabilities);
  });
}

/** "5", or "5 or 3" if the network is unsure. */
function briefly(probabilities) {
  const [first, second] = ranked(probabilities);
  return probabilities[first] < UNSURE ? `${first} or ${second}` : `${first}`;
}

let shown; // the answer
let announcing = 0;

/** Shows an answer of the chosen network: {image, maps, probabilities} or {refusal}. */
function showAnswer(answer) {
  const { image, maps, probabilities, refusal } = answer;
  shown = answer;
  const [first] = ranked(probabilities ?? []);
  const isSure = probabilities?.[first] >= UNSURE;
  const unsure = refusal ?? `Unsure: ${briefly(probabilities)}`;
  const sentence = isSure ? `with a probability of ${percent(probabilities[first]).replace(">", "over ")}` : unsure;
  find("digit").textContent = refusal ? "?" : `${first}${isSure ? "" : "?"}`;
  find("sentence").textContent = sentence;
  clearTimeout(announcing);
  const announcement = isSure ? `${first}, ${sentence}` : sentence;
  announcing = setTimeout(() => (find("announcement").textContent = announcement), ANNOUNCEMENT_DELAY);
  Array.from(find("bars").children).forEach((row, number) => {
    row.className = number === first ? "best" : "";
    row.style.setProperty("--share", probabilities ? probabilities[number] : 0);
    row.querySelector("span").textContent = probabilities ? percent(probabilities[number]) : "–";
  });
  paint(find("input"), INPUT_COLOUR, (place) => (image ? image[place] : 0));
  layers.forEach((pictures, number) => showMaps(pictures, maps?.[number]));
}

/** The digits, most probable first. */
const ranked = (probabilities) => [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);

/** One decimal; never 100% or 0%, since a network is never certain. */
function percent(probability) {
  const text = (100 * probability).toFixed(1);
  if (text === "100.0") return ">99.9%";
  return text === "0.0" ? "<0.1%" : `${text}%`;
}

/** Paints a layer's maps, brightest for its largest value; by the square root, to show weak ones. Dark without maps. */
function showMaps(pictures, values) {
  const highest = values && maximum(values);
  pictures.forEach((picture, channel) => {
    const start = channel * picture.width * picture.height;
    const brightness = (place) => Math.sqrt(Math.max(0, values[start + place]) / highest);
    paint(picture, MAP_COLOUR, (place) => (highest ? 255 * brightness(place) : 0));
  });
}

/** Paints a canvas with a colour [red, green, blue], as opaque as `opacity` of a pixel's place, from 0 to 255. */
function paint(picture, [red, green, blue], opacity) {
  const pixels = new ImageData(picture.width, picture.height);
  const { data } = pixels;
  for (let place = 0, at = 0; at < data.length; place++) {
    data[at++] = red;
    data[at++] = green;
    data[at++] = blue;
    data[at++] = opacity(place);
  }
  picture.getContext("2d").putImageData(pixels, 0, 0);
}

// --- Networks --------------------------------------------------------------------------------------------------------

function chooseNetwork(number) {
  selected = number;
  shown = null;
  layers = makeLayers(networks[number].maps, new Network(networks[number]).run(new Uint8Array(SIDE * SIDE)));
  find("choices").querySelectorAll("input")[number].checked = true;
  find("size").textContent = sizeOf(networks[number]);
  showAnswers();
  ask();
}

const sizeOf = (data) => data.parameters.toLocaleString("en");

function makeChoice(data, number) {
  const input = make("input", { type: "radio", name: "network" });
  input.addEventListener("change", () => chooseNetwork(number));
  const size = make("b", {}, `${sizeOf(data)} parameters`);
  const accuracy = make("small", {}, `test accuracy ${data.accuracy}`);
  return make("label", { title: data.line }, input, size, accuracy, make("small", {}, data.title));
}

/** Headings and pictures for the maps of the shown steps, as large as these outputs; returns a list of lists. */
function makeLayers(shown, outputs) {
  find("layers").replaceChildren();
  return shown.map((step, number) => {
    const { channels, height, width } = outputs[step];
    const pictures = Array.from({ length: channels }, () => make("canvas", { width, height }));
    const size = make("small", {}, `${channels} maps of ${height}×${width} pixels`);
    const maps = make("div", { className: "maps", ariaHidden: "true" }, ...pictures);
    find("layers").append(make("h3", {}, `Layer ${number + 1} `, size), maps);
    return pictures;
  });
}

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

// --- Start -----------------------------------------------------------------------------------------------------------

const scripts = [...document.querySelectorAll("script:not([type])")].slice(0, -1).map((script) => script.textContent);
scripts.push(`answerQuestions(${find("networks").textContent});`);
const worker = new Worker(URL.createObjectURL(new Blob(scripts)));
worker.onmessage = receive;

find("ink").style.strokeWidth = PEN;
const makeBar = (_, digit) => make("li", {}, make("b", {}, digit), make("i"), make("span"));
find("bars").append(...Array.from({ length: 10 }, makeBar));
find("samples").append(...SAMPLES.map(makeSample));
const makeAnswer = (data) => make("li", {}, make("b"), make("small", {}, sizeOf(data)));
find("all").append(...networks.map(makeAnswer));
find("choices").append(...networks.map(makeChoice));
chooseNetwork(Math.max(0, networks.findIndex((data) => data.name === "s5")));
showSoon();
