/**
 * A bundle without the service: the same pixels for the same seed.
 *
 * Runs in Node with `onnxruntime-node` and in a page with `onnxruntime-web`; whichever it is comes
 * as an argument, because the two have one interface.
 */

import { draw, drawLabel } from "./ptheta-noise.mjs";

/**
 * Draw the inputs of a `generate` graph, and run it.
 *
 * @param {object} ort `onnxruntime-node` or `onnxruntime-web`.
 * @param {object} session An `InferenceSession` of the bundle's generate.onnx.
 * @param {object} manifest The bundle's model.json.
 * @param {object} request As of POST /sample: `seed`, `firstIndex`, `n`, `temperature`; `label`, the
 *   number of a class, drawn from the seed by default. Of a model that completes: `known`, grey
 *   levels of one image, H·W·C bytes, and `knownRows`, how many of its rows are known.
 * @returns {Promise<{pixels: Uint8ClampedArray, shape: number[]}>} Grey levels 0…255, shape
 *   (n, H, W) or (n, H, W, 3).
 */
export async function generate(ort, session, manifest, request) {
  const inputs = inputsOf(manifest, request);
  const feeds = {};
  for (const name of session.inputNames) {
    const { type, data, shape } = inputs[name];
    feeds[name] = new ort.Tensor(type, data, shape);
  }
  const { image } = await session.run(feeds, ["image"]);
  return toPixels(image.data, image.dims);
}

/** Make all inputs that a generator may have; a graph takes those that it names. */
function inputsOf(manifest, request) {
  const { seed, firstIndex = 0, n = 1, temperature = 1, label, known, knownRows = 0 } = request;
  const { prior, shape } = manifest.noise;
  const indices = Array.from({ length: n }, (_, i) => BigInt(firstIndex) + BigInt(i));
  const size = shape.reduce((product, each) => product * each, 1);
  const noise = new Float32Array(n * size);
  indices.forEach((index, i) => noise.set(draw(prior, seed, index, size), i * size));
  const numClasses = manifest.labels.length;
  const labels = indices.map((index) => BigInt(label ?? drawLabel(seed, index, numClasses)));
  const [channels, height, width] = manifest.image.shape;
  const area = height * width;
  const image = [n, channels, height, width];
  const knownValues = new Float32Array(n * channels * area);
  const knownMask = new Float32Array(n * channels * area);
  for (let i = 0; known && i < knownValues.length; i++) {
    const [channel, place] = [Math.floor(i / area) % channels, i % area];
    const level = known[place * channels + channel];
    knownValues[i] = manifest.image.values === "binary" ? Number(level >= 128) : level / 255;
    knownMask[i] = Number(place < knownRows * width);
  }
  return {
    noise: { type: "float32", data: noise, shape: [n, ...shape] },
    label: { type: "int64", data: BigInt64Array.from(labels), shape: [n] },
    temperature: { type: "float32", data: new Float32Array(n).fill(temperature), shape: [n] },
    known: { type: "float32", data: knownValues, shape: image },
    known_mask: { type: "float32", data: knownMask, shape: image },
  };
}

/**
 * Round images in [0, 1] to grey levels as the service does: 255·x in single precision, halves to
 * the even neighbour, which is how a Uint8ClampedArray rounds.
 *
 * @param {Float32Array} values Shape (n, C, H, W).
 * @param {readonly number[]} dims That shape.
 */
export function toPixels(values, [n, channels, height, width]) {
  const area = height * width;
  const pixels = new Uint8ClampedArray(values.length);
  for (let i = 0; i < values.length; i++) {
    const [image, channel] = [Math.floor(i / area / channels), Math.floor(i / area) % channels];
    pixels[(image * area + (i % area)) * channels + channel] = Math.fround(values[i] * 255);
  }
  const shape = [n, height, width];
  return { pixels, shape: channels === 1 ? shape : [...shape, channels] };
}
