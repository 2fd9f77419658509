"use strict";
// Runs the scripts of the page for test_page.py: node page.js PAGE.html < request.json > response.json.
// A request is {network, images, drawings, photos}: a packed network; bytes in base64, 784 an image, 65,536 a drawing;
// photos are {width, height, data}, RGBA.
const fs = require("fs");
const vm = require("vm");

const page = fs.readFileSync(process.argv[2], "utf8");
const scripts = Array.from(page.matchAll(/<script>\n(.*?)<\/script>/gs), (match) => match[1]);
scripts.filter((script) => !script.includes("document.")).forEach((script) => vm.runInThisContext(script));
const request = JSON.parse(fs.readFileSync(0, "utf8"));
const { Network, prepare, paperWith, cutOutSheet, DigitError, WORKING_SIDE } = vm.runInThisContext(
  "({ Network, prepare, paperWith, cutOutSheet, DigitError, WORKING_SIDE })");

function split(text, size) {
  const bytes = Buffer.from(text ?? "", "base64");
  return Array.from({ length: bytes.length / size }, (_, number) => bytes.subarray(number * size, (number + 1) * size));
}

function prepareOrRefuse(greyOf) {
  try {
    return { image: Array.from(prepare(greyOf())) };
  } catch (error) {
    if (!(error instanceof DigitError)) throw error;
    return { refusal: error.message };
  }
}

const network = request.network && new Network(request.network);
const response = {
  logits: split(request.images, 784).map((image) => Array.from(network.run(image).at(-1).values)),
  prepared: split(request.drawings, WORKING_SIDE ** 2).map((ink) => (
    prepareOrRefuse(() => paperWith(ink)))),
  photos: (request.photos ?? []).map((photo) => (
    prepareOrRefuse(() => cutOutSheet({ ...photo, data: Buffer.from(photo.data, "base64") })))),
};
fs.writeFileSync(1, JSON.stringify(response));
