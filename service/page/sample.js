// Images from a seed: the wall of pictures.

import { address, ask, latest, randomSeed, showPicture } from "./api.js";
import { Code } from "./code.js";
import { showOptions, showOutputs } from "./fields.js";
import { scaleFor, TILE_PX } from "./images.js";

const MAX_COLUMNS = 16;
const NARROW = 8; // columns: here, more rows make up for it

export class Sample {
  constructor(section) {
    this.section = section;
    this.form = section.querySelector("form");
    this.image = section.querySelector(".wall img");
    this.status = section.querySelector(".status");
    this.problem = section.querySelector(".problem");
    this.code = new Code(section.querySelector(".code"), "This picture");
    this.update = latest((signal) => this.draw(signal), 60);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.form.elements.seed.value = randomSeed();
      this.update();
    });
    this.form.addEventListener("input", () => {
      showOutputs(this.form);
      if (this.form.checkValidity()) this.update();
    });
  }

  show(model) {
    this.model = model;
    const { n, temperature, truncation } = this.form.elements;
    const [, height, width] = model.image.shape;
    const columns = this.columnsOf(width, scaleFor(height, TILE_PX));
    n.value ||= Math.min(columns * (columns > NARROW ? 4 : 6), model.limits.max_rows);
    n.max = model.limits.max_rows;
    temperature.value = truncation.value = 1;
    showOptions(this.form, model, true);
    showOutputs(this.form);
    this.update();
  }

  columnsOf(width, scale) {
    return Math.max(1, Math.min(MAX_COLUMNS, Math.floor(this.section.clientWidth / (width * scale))));
  }

  async draw(signal) {
    const { model } = this;
    const { n, seed, labels, temperature, truncation } = this.form.elements;
    const [, height, width] = model.image.shape;
    const scale = scaleFor(height, TILE_PX);
    const columns = Math.min(this.columnsOf(width, scale), n.valueAsNumber);
    const chosen = (input, name) => (model.options.includes(name) && input.value !== "1" ? input.value : undefined);
    const url = address("sample", {
      model: `${model.name}@${model.version}`,
      n: n.value,
      seed: seed.value,
      labels: labels.value || undefined,
      temperature: chosen(temperature, "temperature"),
      truncation: chosen(truncation, "truncation"),
      columns,
      scale,
      format: "png", // or what is shown would be what the browser likes best, and not what is copied
    });
    this.code.show({ url, file: "samples.png" });
    this.image.width = columns * width * scale;
    this.image.height = Math.ceil(n.valueAsNumber / columns) * height * scale;
    this.problem.textContent = "";
    await this.load(url, signal);
  }

  async load(url, signal) {
    try {
      await showPicture(this.image, url, { signal });
      await this.image.decode();
      if (signal.aborted) return;
      const { n, seed } = this.form.elements;
      this.image.alt = `${n.value} images of ${this.model.name}, seed ${seed.value}`;
      this.status.textContent = `${this.image.alt}. The same seed gives the same bytes.`;
    } catch {
      if (!signal.aborted) await this.explain(url, signal);
    }
  }

  /** A picture that cannot be shown does not say why; its request does. */
  async explain(url, signal) {
    this.status.textContent = "";
    try {
      await ask(url, { signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      this.problem.textContent = error.message;
    }
  }
}
