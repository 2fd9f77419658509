"use strict";
// Reads what is drawn: run in a worker, so that the pen never waits for an answer.

/** Answers questions {number, ink}: the ink is left out if it is that of the last question. */
function answerQuestions(networks) {
  const loaded = networks.map((data) => new Network(data));
  let image;
  onmessage = ({ data: { number, ink } }) => {
    try {
      if (ink) image = prepare(ink);
      const outputs = loaded[number].run(image);
      const maps = networks[number].maps.map((step) => outputs[step].values);
      postMessage({ image, maps, probabilities: softmax(outputs.at(-1).values) });
    } catch (error) {
      if (!(error instanceof DigitError)) throw error;
      postMessage({ refusal: error.message });
    }
  };
}
