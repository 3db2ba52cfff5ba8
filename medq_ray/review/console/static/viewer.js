// One image, or the two of a comparison side by side: zoom, pan, window and level are theirs together.

import { element } from "./dom.js";

const CLOSEST = 40; // times the size that fits
const FARTHEST = 0.5;
const GREYS = { center: 127.5, width: 255 }; // of 8 bits
const WHITE = 255;

/** Of a CT in Hounsfield units: the usual ones. */
export const PRESETS = [
  { name: "Brain", center: 40, width: 80 },
  { name: "Lung", center: -600, width: 1500 },
  { name: "Bone", center: 400, width: 1800 },
  { name: "Abdomen", center: 40, width: 400 },
  { name: "Mediastinum", center: 50, width: 350 },
];

export class Viewer {
  #panes = [];
  #at = { zoom: 1, x: 0, y: 0, inverted: false };
  #fingers = new Map(); // pointer id -> its last place
  #place;
  #told;
  #pointed;
  #drawing = 0;
  windowing = false; // whether a plain drag sets window and level: for those who have one button, or fingers

  /** place: an element for the panes; told: called with a line about the view after each change; pointed: with the
   *  value under the pointer, or ''. */
  constructor(place, told, pointed) {
    this.#place = place;
    this.#told = told;
    this.#pointed = pointed;
    place.addEventListener("pointerdown", (event) => this.#down(event));
    place.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) {
      place.addEventListener(end, (event) => this.#fingers.delete(event.pointerId));
    }
    place.addEventListener("dblclick", () => this.reset());
    place.addEventListener("pointerleave", () => this.#point(null));
    place.addEventListener("contextmenu", (event) => event.preventDefault());
    place.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    new ResizeObserver(() => this.#draw()).observe(place);
  }

  /** Whether all images are in Hounsfield units. */
  get hounsfield() {
    return this.#panes.length > 0 && this.#panes.every(({ depth }) => depth?.unit === "HU");
  }

  /** Show decoded images [{picture, depth: all its bits, or null}], fitted, as the model saw them; label: what they are,
   *  for who cannot see them. */
  show(pictures, label) {
    const many = pictures.length > 1;
    this.#panes = pictures.map(({ picture, depth }, n) => {
      const name = many ? ["First", "Second"][n] : "";
      const canvas = element("canvas", { role: "img", "aria-label": [label, name].filter(Boolean).join(", ") });
      const own = depth ? { center: depth.center, width: depth.width } : GREYS;
      return { picture, depth, own, window: own, canvas, windowed: null, name };
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
    this.#shade((pane) => pane.own);
    this.#set({ zoom: 1, x: 0, y: 0, inverted: false });
  }

  invert() {
    this.#shade((pane) => pane.window);
    this.#set({ inverted: !this.#at.inverted });
  }

  /** In Hounsfield units. */
  window({ center, width }) {
    this.#shade(() => ({ center, width }));
    this.#set({});
  }

  /** Level and width by so many 255ths of each image's own window: greys, where it has 8 bits. */
  level(center, width) {
    const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
    this.#shade(({ window, own, depth }) => {
      const grey = own.width / WHITE;
      const ends = depth ? [depth.intercept, depth.intercept + depth.slope * 65535].sort((a, b) => a - b) : [0, WHITE];
      return {
        center: clamp(window.center + center * grey, ...ends),
        width: clamp(window.width + width * grey, (depth && Math.abs(depth.slope)) || 1, 2 * (ends[1] - ends[0])),
      };
    });
    this.#set({});
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
    this.#point(event);
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
    Object.assign(this.#at, changed);
    cancelAnimationFrame(this.#drawing);
    this.#drawing = requestAnimationFrame(() => this.#draw());
  }

  /** Give every pane another window, drawn with the next frame. */
  #shade(windowOf) {
    for (const pane of this.#panes) {
      pane.window = windowOf(pane);
      pane.windowed = null;
    }
  }

  #scale({ picture }, { width, height }) {
    return this.#at.zoom * Math.min(width / picture.width, height / picture.height);
  }

  #draw() {
    if (!this.#panes.length) {
      return;
    }
    let shown = 0;
    for (const pane of this.#panes) {
      const { canvas, picture } = pane;
      const box = canvas.getBoundingClientRect();
      const dots = window.devicePixelRatio;
      [canvas.width, canvas.height] = [Math.round(box.width * dots), Math.round(box.height * dots)];
      shown = this.#scale(pane, box);
      const context = canvas.getContext("2d");
      context.setTransform(dots, 0, 0, dots, (box.width / 2 + this.#at.x) * dots, (box.height / 2 + this.#at.y) * dots);
      context.scale(shown, shown);
      context.imageSmoothingEnabled = shown < 8; // beyond, single pixels are what one looks for
      context.imageSmoothingQuality = "high";
      context.drawImage(this.#windowed(pane), -picture.width / 2, -picture.height / 2);
    }
    const parts = [`${Math.round(100 * shown)} %`, ...new Set(this.#panes.map(worded))];
    if (this.#at.inverted) {
      parts.push("inverted");
    } else if (this.#panes.every(untouched)) {
      parts.push("as the model saw it");
    }
    this.#told(parts.join(" · "));
  }

  /** The picture with its values in the window. The picture itself is what the model saw: it is shown until somebody
   *  asks for another window, which then is one of all its bits. */
  #windowed(pane) {
    const { inverted } = this.#at;
    if (untouched(pane) && !inverted) {
      return pane.picture;
    }
    pane.windowed ??= pane.depth && !untouched(pane) ? deeply(pane, inverted) : flatly(pane, inverted);
    return pane.windowed;
  }

  /** Tell the value under the pointer, where values mean something. */
  #point(event) {
    const pane = event && this.#panes.find(({ canvas }) => canvas === event.target);
    let line = "";
    if (pane?.depth) {
      const box = pane.canvas.getBoundingClientRect();
      const scale = this.#scale(pane, box);
      const [dx, dy] = this.#fromMiddle({ x: event.clientX, y: event.clientY }, pane.canvas);
      const x = Math.floor((dx - this.#at.x) / scale + pane.picture.width / 2);
      const y = Math.floor((dy - this.#at.y) / scale + pane.picture.height / 2);
      const { numbers, width_px, height_px, slope, intercept, unit } = pane.depth;
      if (x >= 0 && y >= 0 && x < width_px && y < height_px) {
        line = `${short(slope * numbers[y * width_px + x] + intercept)} ${unit}`.trim();
      }
    }
    this.#pointed(line);
  }
}

const short = (value) => (Math.abs(value) < 10 && value % 1 ? value.toFixed(2) : `${Math.round(value)}`).replace("-", "−");
const untouched = ({ window, own }) => window.center === own.center && window.width === own.width;
const worded = ({ window, depth }) =>
  `level ${short(window.center)}, window ${short(window.width)} ${depth?.unit ?? ""}`.trim();

/** 0 to 255 of a value in a window. */
const grey = (value, { center, width }, inverted) => {
  const level = ((value - center) / width + 0.5) * WHITE;
  return inverted ? WHITE - level : level;
};

/** An image of 8 bits in its window, colour by colour. */
function flatly({ picture, window, depth }, inverted) {
  const made = new OffscreenCanvas(picture.width, picture.height);
  const context = made.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const pixels = context.getImageData(0, 0, made.width, made.height);
  const range = depth ? GREYS : window;
  const table = Uint8ClampedArray.from({ length: 256 }, (_, value) => grey(value, range, inverted));
  for (let i = 0; i < pixels.data.length; i += 4) {
    pixels.data[i] = table[pixels.data[i]];
    pixels.data[i + 1] = table[pixels.data[i + 1]];
    pixels.data[i + 2] = table[pixels.data[i + 2]];
  }
  context.putImageData(pixels, 0, 0);
  return made;
}

/** All bits of an image in its window. */
function deeply({ depth, window }, inverted) {
  const { numbers, width_px, height_px, slope, intercept } = depth;
  const swapped = inverted !== depth.inverted;
  const levels = Uint8ClampedArray.from({ length: 65536 }, (_, n) => grey(slope * n + intercept, window, swapped));
  const table = Uint32Array.from(levels, (level) => 0xff000000 + level * 0x010101); // alpha is the last byte on every machine that runs a browser
  const pixels = new ImageData(width_px, height_px);
  const all = new Uint32Array(pixels.data.buffer);
  for (let i = 0; i < all.length; i++) {
    all[i] = table[numbers[i]];
  }
  const made = new OffscreenCanvas(width_px, height_px);
  made.getContext("2d").putImageData(pixels, 0, 0);
  return made;
}
