// The pad that one draws on, by pointer or keys.

import { paint } from "./images.js";

const STROKE = 0.085; // of the height: as wide as the pen of MNIST
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Drawing {
  /**
   * @param square Holds the canvas, the shade over unknown rows and the cursor of the keys.
   * @param tools Holds the inputs `erase` and `colour`.
   */
  constructor(square, tools, onchange) {
    this.canvas = square.querySelector("canvas");
    this.shade = square.querySelector(".unknown");
    this.cursorBox = square.querySelector(".cursor");
    this.tools = tools;
    this.onchange = onchange;
    this.cursor = [0, 0];
    this.canvas.addEventListener("pointerdown", (event) => this.begin(event));
    this.canvas.addEventListener("pointermove", (event) => this.move(event));
    this.canvas.addEventListener("keydown", (event) => this.press(event));
    this.canvas.addEventListener("focus", () => this.showCursor());
    this.canvas.addEventListener("blur", () => this.showCursor());
  }

  /** Begin anew with images of a model: (C, H, W), and whether pixels are only 0 and 255. */
  reset(shape, isBinary) {
    this.shape = shape;
    this.isBinary = isBinary;
    const [channels, height, width] = shape;
    this.pixels = new Uint8Array(channels * height * width);
    this.cursor = [width >> 1, height >> 1];
    this.render();
  }

  /** Show other pixels, (H, W, C). */
  set(pixels) {
    this.pixels = this.isBinary ? pixels.map((level) => (level >= 128 ? 255 : 0)) : pixels;
    this.render();
    this.onchange();
  }

  clear() {
    this.set(new Uint8Array(this.pixels.length));
  }

  invert() {
    this.set(this.pixels.map((level) => 255 - level));
  }

  /** Shade all but the first rows. */
  shadeBelow(rows) {
    this.shade.style.top = `${(100 * rows) / this.shape[1]}%`;
  }

  begin(event) {
    if (event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.last = this.pointOf(event);
    this.stroke(this.last, this.last);
  }

  move(event) {
    if (!this.canvas.hasPointerCapture(event.pointerId)) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) {
      const point = this.pointOf(each);
      this.stroke(this.last, point);
      this.last = point;
    }
  }

  press(event) {
    const [, height, width] = this.shape;
    const step = MOVES[event.key];
    if (step) {
      const [x, y] = this.cursor;
      this.cursor = [clamp(x + step[0], 0, width - 1), clamp(y + step[1], 0, height - 1)];
      this.showCursor();
    } else if (event.key === " " || event.key === "Enter") {
      this.dot(this.tools.erase.checked ? [0, 0, 0] : this.ink());
    } else if (event.key === "Backspace" || event.key === "Delete") {
      this.dot([0, 0, 0]);
    } else return;
    event.preventDefault();
  }

  showCursor() {
    const [, height, width] = this.shape;
    this.cursorBox.hidden = !this.canvas.matches(":focus-visible");
    const style = { left: this.cursor[0] / width, top: this.cursor[1] / height, width: 1 / width, height: 1 / height };
    for (const [name, share] of Object.entries(style)) this.cursorBox.style[name] = `${100 * share}%`;
  }

  pointOf(event) {
    const box = this.canvas.getBoundingClientRect();
    const [, height, width] = this.shape;
    return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  }

  ink() {
    if (this.shape[0] === 1) return [255];
    return this.tools.colour.value.match(/[0-9a-f]{2}/gi).map((digits) => parseInt(digits, 16));
  }

  /** Colour one pixel, under the cursor of the keys. */
  dot(ink) {
    const [x, y] = this.cursor;
    this.blend(x, y, 1, ink);
    this.render();
    this.onchange();
  }

  /** Draw a line with round ends; its edge is soft where the model knows grey. */
  stroke(from, to) {
    const [, height, width] = this.shape;
    const ink = this.tools.erase.checked ? [0, 0, 0] : this.ink();
    const radius = Math.max(0.7, (STROKE * height) / 2);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const cover = clamp(radius + 0.5 - distance([x + 0.5, y + 0.5], from, to), 0, 1);
        if (cover > 0) this.blend(x, y, this.isBinary ? Math.round(cover) : cover, ink);
      }
    }
    this.render();
    this.onchange();
  }

  blend(x, y, cover, ink) {
    const [channels, , width] = this.shape;
    for (let c = 0; c < channels; c++) {
      const i = channels * (y * width + x) + c;
      this.pixels[i] = Math.round(this.pixels[i] + cover * (ink[c] - this.pixels[i]));
    }
  }

  render() {
    const [channels, height, width] = this.shape;
    const { pixels } = this;
    paint(this.canvas, width, height, (i) =>
      channels === 3 ? pixels.subarray(3 * i, 3 * i + 3) : [pixels[i], pixels[i], pixels[i]],
    );
    this.showCursor();
  }
}

/** How far a point is from a line between two others. */
function distance([x, y], [x0, y0], [x1, y1]) {
  const [dx, dy] = [x1 - x0, y1 - y0];
  const t = clamp(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy || 1), 0, 1);
  return Math.hypot(x - x0 - t * dx, y - y0 - t * dy);
}

function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}
