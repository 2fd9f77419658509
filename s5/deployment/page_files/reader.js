"use strict";
// Reads what is drawn or photographed: run in a worker, so that the pen never waits for an answer.

/** Answers questions {number, ink, photo}: of a network, and a new drawing's pixels or a photo, if it is a new one. */
function answerQuestions(networks) {
  const loaded = networks.map((data) => new Network(data));
  let image;
  onmessage = ({ data: { number, ink, photo } }) => {
    try {
      if (photo) image = prepare(cutOutSheet(photo));
      else if (ink) image = prepare(paperWith(ink));
      const outputs = loaded[number].run(image);
      const maps = networks[number].maps.map((step) => outputs[step].values);
      postMessage({ image, maps, probabilities: softmax(outputs.at(-1).values) });
    } catch (error) {
      if (!(error instanceof DigitError)) throw error;
      postMessage({ refusal: error.message });
    }
  };
}
