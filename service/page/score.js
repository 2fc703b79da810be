// How likely a picture is, which of its pixels surprise, and how it could go on.

import { address, latest, post, randomSeed, seedForJson } from "./api.js";
import { Code } from "./code.js";
import { Drawing } from "./drawing.js";
import { showAbility, showOptions, showOutputs, whenNear } from "./fields.js";
import { base64, encodePng, paint, pixelsOfFile, pixelsOfNpy, scaleFor } from "./images.js";
import { testNats } from "./models.js";

const NUM_COMPLETIONS = 16;
const COLUMNS = 4;
const SIDE_PX = 560; // of the picture that is made; shown at half of it: sharp on dense screens
const NUM_IMPORTANCE_SAMPLES = 32;
// From certain to surprising: black, purple, red, orange, pale yellow.
const RAMP = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];

export class Score {
  constructor(section, models) {
    this.section = section;
    this.models = models;
    this.surprise = section.querySelector(".surprise");
    this.made = section.querySelector(".made");
    this.form = this.made.querySelector("form");
    this.result = section.querySelector(".result");
    this.problem = section.querySelector(".problem");
    const [ofScore, ofMade] = section.querySelectorAll(".code");
    this.scoreCode = new Code(ofScore, "This score");
    this.madeCode = new Code(ofMade, "");
    this.seed = 7;
    this.bench = section.querySelector(".bench");
    this.askSoon = latest((signal) => this.ask(signal), 120);
    this.connect(section.querySelector(".drawing"));
  }

  /** Ask anew for all that depends on the picture. */
  update() {
    this.setBusy(true);
    this.askSoon();
  }

  setBusy(isBusy) {
    this.bench.setAttribute("aria-busy", String(isBusy));
  }

  connect(panel) {
    const named = (name) => panel.querySelector(`[name=${name}]`);
    this.labels = named("labels");
    const tools = { erase: named("erase"), colour: named("colour") };
    const square = panel.querySelector(".square");
    this.drawing = new Drawing(square, tools, () => this.update());
    named("clear").addEventListener("click", () => this.drawing.clear());
    named("invert").addEventListener("click", () => this.drawing.invert());
    named("draw").addEventListener("click", () => this.takeSample(randomSeed()));
    named("file").addEventListener("change", (event) => this.takeFile(event.target));
    this.labels.addEventListener("change", () => this.update());
    square.addEventListener("dragover", (event) => event.preventDefault());
    square.addEventListener("drop", (event) => {
      event.preventDefault();
      this.takeFile(event.dataTransfer);
    });
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.seed = randomSeed();
      this.update();
    });
    this.form.addEventListener("input", () => {
      showOutputs(this.form);
      this.drawing.shadeBelow(this.form.elements.known_rows.valueAsNumber);
      this.update();
    });
  }

  show(model) {
    this.model = model;
    const can = showAbility(
      this.section, model, "log_prob", this.models, "has no likelihood: it cannot say how likely a picture is.",
    );
    this.askSoon.cancel();
    this.setBusy(false);
    this.near?.disconnect();
    if (!can) return;
    showOptions(this.section, model, false);
    const [, height] = model.image.shape;
    this.surprise.hidden = !model.options.includes("per_dim");
    this.result.replaceChildren();
    this.madeCode.show(undefined);
    this.makes = ["complete", "reconstruct"].find((operation) => model.operations.includes(operation));
    this.made.hidden = !this.makes;
    this.form.hidden = this.makes !== "complete";
    this.made.querySelector("h4").textContent = this.form.hidden ? "What the model makes of it" : "Ways to go on";
    this.madeCode.name(this.form.hidden ? "This reconstruction" : "These completions");
    const { known_rows: rows } = this.form.elements;
    rows.max = height;
    rows.value = height >> 1;
    showOutputs(this.form);
    this.drawing.reset(model.image.shape, model.image.values === "binary");
    this.drawing.shadeBelow(this.form.hidden ? height : rows.valueAsNumber);
    this.near = whenNear(this.section, () => this.takeSample(this.seed));
  }

  /** Begin with an image of the model's own. */
  async takeSample(seed) {
    const { model } = this;
    const labels = this.labels.value || undefined;
    this.setBusy(true);
    await this.guard(async () => {
      const answer = await post("sample", { model: reference(model), seed, labels, format: "npy" });
      const pixels = pixelsOfNpy(await answer.arrayBuffer(), model.image.shape);
      if (model === this.model) this.drawing.set(pixels);
    });
  }

  async takeFile({ files }) {
    const [file] = files;
    if (!file) return;
    this.setBusy(true);
    try {
      this.drawing.set(await pixelsOfFile(file, this.model.image.shape));
    } catch {
      this.setBusy(false);
      this.problem.textContent = `${file.name} cannot be read as a picture.`;
    }
  }

  async ask(signal) {
    const { model } = this;
    if (!model.operations.includes("log_prob")) return;
    const image = base64(await encodePng(this.drawing.pixels, model.image.shape));
    const common = { model: reference(model), labels: this.labels.value || undefined };
    await this.guard(() =>
      Promise.all([this.score(signal, common, image), this.makes && this.make(signal, common, image)]),
    );
    if (!signal.aborted) this.setBusy(false);
  }

  async score(signal, common, image) {
    const { options } = this.model;
    const body = defined({
      ...common,
      images: [image],
      per_dim: options.includes("per_dim") || undefined,
      num_importance_samples: options.includes("num_importance_samples") ? NUM_IMPORTANCE_SAMPLES : undefined,
    });
    this.scoreCode.show({ url: address("log_prob"), body });
    const answer = await (await post("log_prob", body, { signal })).json();
    this.tell(answer);
    if (answer.results[0].per_dim) this.showSurprise(answer.results[0].per_dim);
  }

  /** Let the model complete the picture, or encode and decode it. */
  async make(signal, common, image) {
    const [, height] = this.model.image.shape;
    const rows = this.form.elements.known_rows.valueAsNumber;
    const isCompletion = this.makes === "complete";
    const completion = { image, known_rows: rows, n: NUM_COMPLETIONS, seed: seedForJson(this.seed), columns: COLUMNS };
    const body = defined({
      ...common,
      ...(isCompletion ? completion : { images: [image] }),
      scale: scaleFor(height, isCompletion ? SIDE_PX / COLUMNS : SIDE_PX),
      format: "png",
    });
    this.madeCode.show({ url: address(this.makes), body, file: isCompletion ? "completions.png" : "reconstruction.png" });
    const picture = await (await post(this.makes, body, { signal })).blob();
    const shown = this.made.querySelector("img");
    URL.revokeObjectURL(shown.src);
    shown.src = URL.createObjectURL(picture);
    shown.alt = isCompletion
      ? `${NUM_COMPLETIONS} ways to go on from the first ${rows} rows`
      : "Your picture, encoded and decoded again";
  }

  /** Say the figures of an answer; which there are depends on the model. */
  tell({ density, results: [result] }) {
    const isBound = density === "bound";
    const entries = [["log p(x), nats", result.status === "neg_inf" ? "−∞" : (isBound ? "≥ " : "") + signed(result.log_prob)]];
    if (result.std_error !== undefined) entries[0][1] += ` ± ${result.std_error.toFixed(2)}`;
    if (result.bits_per_dim !== null) entries.push(["Bits per dim", (isBound ? "≤ " : "") + result.bits_per_dim.toFixed(3)]);
    if (result.p_value !== undefined) entries.push(["p-value", plain(result.p_value)]);
    if (result.anomaly_score !== undefined) entries.push(["Anomaly score", plain(result.anomaly_score)]);
    const mean = testNats(this.model);
    if (mean) entries.push(["Test images, on average", (isBound ? "≥ " : "") + signed(-mean.value)]);
    const list = document.createElement("dl");
    for (const [term, value] of entries) {
      const pair = list.appendChild(document.createElement("div"));
      pair.appendChild(document.createElement("dt")).textContent = term;
      pair.appendChild(document.createElement("dd")).textContent = value;
    }
    this.result.replaceChildren(list);
  }

  /** Paint nats per pixel, (H, W) or (H, W, C), of which a pixel shows the sum. */
  showSurprise(map) {
    const sums = map.flat().map((value) => (Array.isArray(value) ? value.reduce((a, b) => a + b) : value));
    const finite = sums.map((value) => value ?? Infinity); // JSON has no infinity
    const most = Math.max(...finite.filter(Number.isFinite), 1e-9);
    const width = map[0].length;
    const canvas = this.surprise.querySelector("canvas");
    paint(canvas, width, map.length, (i) => colourOf(Math.min(1, finite[i] / most)));
    const at = finite.indexOf(Math.max(...finite));
    const where = `row ${Math.floor(at / width) + 1}, column ${(at % width) + 1}`;
    canvas.setAttribute("aria-label", `Surprise per pixel; most at ${where}: ${most.toFixed(1)} nats`);
    this.surprise.querySelector(".most").textContent = `${most.toFixed(1)} nats`;
  }

  async guard(work) {
    this.problem.textContent = "";
    try {
      await work();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      this.setBusy(false);
      this.problem.textContent = error.message;
    }
  }
}

function reference(model) {
  return `${model.name}@${model.version}`;
}

function defined(body) {
  return Object.fromEntries(Object.entries(body).filter(([, value]) => value !== undefined));
}

function signed(nats) {
  return nats.toFixed(2).replace("-", "−");
}

function plain(number) {
  return number === null ? "–" : number.toPrecision(3);
}

function colourOf(share) {
  const position = share * (RAMP.length - 1);
  const i = Math.min(RAMP.length - 2, Math.floor(position));
  return RAMP[i].map((level, c) => level + (position - i) * (RAMP[i + 1][c] - level));
}
