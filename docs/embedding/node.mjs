/**
 * Draw images of a bundle in Node, as one picture in PGM or PPM, one below the other:
 *
 *     node node.mjs ../../model_store/nade-mnist/2 '{"seed": 7, "n": 16}' > digits.pgm
 *
 * The request is that of `generate` in ptheta.mjs.
 */

import { readFile } from "node:fs/promises";
import { stdout } from "node:process";
import ort from "onnxruntime-node";

import { generate } from "./ptheta.mjs";

const [folder, request] = process.argv.slice(2);
const manifest = JSON.parse(await readFile(`${folder}/model.json`, "utf8"));
const session = await ort.InferenceSession.create(`${folder}/generate.onnx`);
const { pixels, shape } = await generate(ort, session, manifest, JSON.parse(request));
const [n, height, width, channels = 1] = shape;
stdout.write(`P${channels === 1 ? 5 : 6}\n${width} ${n * height}\n255\n`);
stdout.write(pixels);
