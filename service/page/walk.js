// A walk through latent space: an animation, and its frames side by side.

import { address, ask, latest, randomSeed, showPicture } from "./api.js";
import { Code } from "./code.js";
import { showAbility, showOptions, whenNear } from "./fields.js";
import { scaleFor, TILE_PX } from "./images.js";

const SIDE_PX = 224;
const FRAMES_PER_STRIP = 11;
const FPS = 12;

export class Walk {
  constructor(section, models) {
    this.section = section;
    this.models = models;
    this.form = section.querySelector("form");
    this.animation = section.querySelector(".animation");
    this.strips = section.querySelector(".strips");
    this.pause = section.querySelector(".pause");
    this.status = section.querySelector(".status");
    this.problem = section.querySelector(".problem");
    this.code = new Code(section.querySelector(".code"), "This animation");
    this.isPaused = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.update = latest((signal) => this.draw(signal), 60);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      const { seeds } = this.form.elements;
      seeds.value = seeds.value.split(",").map(randomSeed).join(", ");
      this.update();
    });
    this.form.addEventListener("input", () => {
      if (this.form.checkValidity()) this.update();
    });
    this.pause.addEventListener("click", () => {
      this.isPaused = !this.isPaused;
      this.update();
    });
  }

  show(model) {
    this.model = model;
    const can = showAbility(
      this.section, model, "interpolate", this.models,
      "draws pixel by pixel from noise that is no smooth code: there is nothing between two seeds.",
    );
    if (!can) return;
    showOptions(this.form, model, true);
    this.near?.disconnect();
    this.near = whenNear(this.section, () => this.update());
  }

  async draw(signal) {
    const { model } = this;
    if (!model.operations.includes("interpolate")) return;
    const { seeds, steps, loop, labels } = this.form.elements;
    const list = seeds.value.split(",").map((seed) => seed.trim());
    const [, height, width] = model.image.shape;
    const reference = `${model.name}@${model.version}`;
    const label = labels.value || undefined;
    const scale = scaleFor(height, SIDE_PX);
    const url = address("interpolate", {
      model: reference, seeds: list, steps: steps.value, loop: loop.checked || undefined, labels: label, fps: FPS, scale, format: "webp",
    });
    const still = address("sample", { model: reference, seed: list[0], labels: label, scale, format: "png" });
    this.animation.width = width * scale;
    this.animation.height = height * scale;
    this.pause.textContent = this.isPaused ? "Play" : "Pause";
    this.code.show({ url, file: "walk.webp" });
    this.problem.textContent = "";
    const ends = loop.checked ? [...list.slice(1), list[0]] : list.slice(1);
    this.strips.replaceChildren(...ends.map((end, i) => this.strip(reference, [list[i], end], label)));
    try {
      await showPicture(this.animation, this.isPaused ? still : url, { signal });
      await this.animation.decode();
      if (signal.aborted) return;
      this.animation.alt = `Images of ${model.name} that turn into each other, from seed ${list.join(" to ")}`;
      this.status.textContent = `${this.isPaused ? "Still: the first frame" : "A walk"} from seed ${list.join(" to ")}${loop.checked ? " and back" : ""}.`;
    } catch {
      if (signal.aborted) return;
      this.strips.replaceChildren();
      this.status.textContent = "";
      await ask(url, { signal }).catch((error) => (this.problem.textContent = error.message));
    }
  }

  strip(model, seeds, labels) {
    const [, height, width] = this.model.image.shape;
    const scale = scaleFor(height, TILE_PX);
    const image = new Image(FRAMES_PER_STRIP * width * scale, height * scale);
    image.alt = `${FRAMES_PER_STRIP} images from seed ${seeds[0]} to seed ${seeds[1]}`;
    const url = address("interpolate", { model, seeds, steps: FRAMES_PER_STRIP, labels, format: "png", scale });
    showPicture(image, url).catch(() => {}); // the animation tells what is wrong
    return image;
  }
}
