// One image, or the two of a comparison side by side: zoom, pan, window and level are theirs together.

import { element } from "./dom.js";

const CLOSEST = 40; // times the size that fits
const FARTHEST = 0.5;
const FULL = { center: 127.5, width: 255 };

// The run holds 8-bit pixels, in whatever window they were exported with, and no Hounsfield units: these spread a part
// of those greys, and are named for what mostly lies there. Windows on the full bit depth come later.
export const PRESETS = [
  { name: "All greys", ...FULL },
  { name: "Dark (lung)", center: 60, width: 120 },
  { name: "Middle (soft tissue)", center: 120, width: 110 },
  { name: "Bright (bone)", center: 195, width: 120 },
];

export class Viewer {
  #panes = [];
  #at = { zoom: 1, x: 0, y: 0, ...FULL, inverted: false };
  #fingers = new Map(); // pointer id -> its last place
  #place;
  #told;
  #drawing = 0;
  windowing = false; // whether a plain drag sets window and level: for those who have one button, or fingers

  /** place: an element for the panes; told: called with a line about the view after each change. */
  constructor(place, told) {
    this.#place = place;
    this.#told = told;
    place.addEventListener("pointerdown", (event) => this.#down(event));
    place.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) {
      place.addEventListener(end, (event) => this.#fingers.delete(event.pointerId));
    }
    place.addEventListener("contextmenu", (event) => event.preventDefault());
    place.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    new ResizeObserver(() => this.#draw()).observe(place);
  }

  /** Show decoded images, fitted; label: what they are, for who cannot see them. */
  show(pictures, label) {
    const many = pictures.length > 1;
    this.#panes = pictures.map((picture, n) => {
      const name = many ? ["First", "Second"][n] : "";
      const canvas = element("canvas", { role: "img", "aria-label": [label, name].filter(Boolean).join(", ") });
      return { picture, canvas, windowed: null, name };
    });
    this.#place.replaceChildren(
      ...this.#panes.map(({ canvas, name }) => element("figure", {}, canvas, many && element("figcaption", {}, name))),
    );
    this.reset();
  }

  /** Show a line in the place of images. */
  tell(line) {
    this.#panes = [];
    this.#place.replaceChildren(element("p", { class: "empty" }, line));
    this.#told("");
  }

  reset() {
    this.#set({ zoom: 1, x: 0, y: 0, ...FULL, inverted: false });
  }

  invert() {
    this.#set({ inverted: !this.#at.inverted });
  }

  window({ center, width }) {
    this.#set({ center, width });
  }

  /** Level and width by so many greys. */
  level(center, width) {
    const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
    this.#set({
      center: clamp(this.#at.center + center, 0, 255),
      width: clamp(this.#at.width + width, 1, 510),
    });
  }

  pan(x, y) {
    this.#set({ x: this.#at.x + x, y: this.#at.y + y });
  }

  /** Zoom by a factor, about a place in CSS pixels from the middle of a pane, which stays where it is. */
  zoom(factor, x = 0, y = 0) {
    const zoom = Math.min(CLOSEST, Math.max(FARTHEST, this.#at.zoom * factor));
    const real = zoom / this.#at.zoom;
    this.#set({ zoom, x: x - (x - this.#at.x) * real, y: y - (y - this.#at.y) * real });
  }

  #down(event) {
    if (event.target.tagName === "CANVAS") {
      event.target.setPointerCapture(event.pointerId);
      this.#fingers.set(event.pointerId, { x: event.clientX, y: event.clientY, canvas: event.target });
    }
  }

  #move(event) {
    const before = this.#fingers.get(event.pointerId);
    if (!before) {
      return;
    }
    const now = { ...before, x: event.clientX, y: event.clientY };
    this.#fingers.set(event.pointerId, now);
    const [dx, dy] = [now.x - before.x, now.y - before.y];
    const other = [...this.#fingers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const spread = (one) => Math.hypot(one.x - other.x, one.y - other.y);
      this.pan(dx / 2, dy / 2);
      this.zoom(spread(now) / Math.max(1, spread(before)), ...this.#fromMiddle(now, now.canvas));
    } else if (event.buttons & 2 || event.shiftKey || this.windowing) {
      this.level(-dy / 2, dx);
    } else {
      this.pan(dx, dy);
    }
  }

  #wheel(event) {
    if (event.target.tagName === "CANVAS") {
      event.preventDefault();
      const place = this.#fromMiddle({ x: event.clientX, y: event.clientY }, event.target);
      this.zoom(Math.exp(-event.deltaY / 400), ...place);
    }
  }

  #fromMiddle(point, canvas) {
    const box = canvas.getBoundingClientRect();
    return [point.x - box.x - box.width / 2, point.y - box.y - box.height / 2];
  }

  #set(changed) {
    const { center, width, inverted } = this.#at;
    Object.assign(this.#at, changed);
    if (center !== this.#at.center || width !== this.#at.width || inverted !== this.#at.inverted) {
      this.#panes.forEach((pane) => (pane.windowed = null));
    }
    cancelAnimationFrame(this.#drawing);
    this.#drawing = requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    if (!this.#panes.length) {
      return;
    }
    let shown = 0;
    for (const pane of this.#panes) {
      const { canvas, picture } = pane;
      const { width, height } = canvas.getBoundingClientRect();
      const dots = window.devicePixelRatio;
      [canvas.width, canvas.height] = [Math.round(width * dots), Math.round(height * dots)];
      const scale = this.#at.zoom * Math.min(width / picture.width, height / picture.height);
      const context = canvas.getContext("2d");
      context.setTransform(dots, 0, 0, dots, (width / 2 + this.#at.x) * dots, (height / 2 + this.#at.y) * dots);
      context.scale(scale, scale);
      context.imageSmoothingEnabled = scale < 8; // beyond, single pixels are what one looks for
      context.imageSmoothingQuality = "high";
      context.drawImage(this.#windowed(pane), -picture.width / 2, -picture.height / 2);
      shown = scale;
    }
    const { center, width, inverted } = this.#at;
    const greys = `level ${Math.round(center)}, window ${Math.round(width)}${inverted ? ", inverted" : ""}`;
    this.#told(`${Math.round(100 * shown)} %, ${greys}`);
  }

  /** The picture with its greys in the window. */
  #windowed(pane) {
    const { center, width, inverted } = this.#at;
    if (!inverted && center === FULL.center && width === FULL.width) {
      return pane.picture;
    }
    if (!pane.windowed) {
      const made = new OffscreenCanvas(pane.picture.width, pane.picture.height);
      const context = made.getContext("2d", { willReadFrequently: true });
      context.drawImage(pane.picture, 0, 0);
      const pixels = context.getImageData(0, 0, made.width, made.height);
      const table = Uint8ClampedArray.from({ length: 256 }, (_, grey) => {
        const level = ((grey - center) / width + 0.5) * 255;
        return inverted ? 255 - level : level;
      });
      for (let i = 0; i < pixels.data.length; i += 4) {
        pixels.data[i] = table[pixels.data[i]];
        pixels.data[i + 1] = table[pixels.data[i + 1]];
        pixels.data[i + 2] = table[pixels.data[i + 2]];
      }
      context.putImageData(pixels, 0, 0);
      pane.windowed = made;
    }
    return pane.windowed;
  }
}
