// The items in this page's hands: the one on the screen, and the next, whose images are decoded before it is needed.

import { depth, picture, post } from "./api.js";

/** An image as the model saw it, and in all its bits where there are more: {picture, depth}. */
async function image(item, n) {
  const path = `/api/items/${item.item_id}`;
  const deep = item.about[n]?.deep;
  const both = [picture(`${path}/images/${n}`), deep ? depth(`${path}/depth/${n}`).catch(() => null) : null];
  const [shown, all] = await Promise.all(both);
  return { picture: shown, depth: all };
}

/** {item, pictures: promise of its decoded images, ready: whether they are there} */
function held(item) {
  const all = Array.from({ length: item.images }, (_, n) => image(item, n));
  const entry = { item, pictures: Promise.all(all), ready: false };
  entry.pictures.then(() => (entry.ready = true), () => {}); // whoever shows them is told what is wrong
  return entry;
}

export class Queue {
  current = null;
  #ahead = [];
  #coming = null; // the prefetch under way
  #settled;
  #arrived;

  /** settled: ends when what was given is stored, since nobody may hold three items; raises where that cannot be.
   *  arrived: is given each item that is at hand now, with its images. */
  constructor(settled, arrived) {
    this.#settled = settled;
    this.#arrived = arrived;
  }

  /** The item after the current one, at once where it is at hand; null when nothing is left. */
  async advance() {
    this.current = null;
    if (!this.#ahead.length) {
      await this.#coming;
    }
    this.current = this.#ahead.shift() ?? (await this.#next("/api/next"));
    return this.current;
  }

  /** The oldest item that this reviewer holds, as after a reload. */
  async restart() {
    await this.#coming;
    this.#ahead = [];
    return this.advance();
  }

  /** Fetch what comes after the current item, unless it is at hand or on its way. */
  prefetch() {
    if (this.current && !this.#ahead.length && !this.#coming) {
      this.#coming = this.#next(`/api/next?after=${this.current.item.token}`)
        .then((entry) => entry && this.#keep(entry), () => {}) // `advance` asks again, and says what is wrong
        .finally(() => (this.#coming = null));
    }
  }

  #keep(entry) {
    this.#ahead.push(entry);
    entry.pictures.then(() => this.#arrived(entry.item), () => {});
  }

  async #next(path) {
    await this.#settled();
    const item = await post(path);
    return item && held(item);
  }

  /** The item that was given last, before what is on the screen now; null when colleagues have it. last: gives the
   *  event that this is, or undefined where the page does not know. */
  async undo(last) {
    await this.#settled();
    await this.#coming;
    const event = last();
    const item = await post(event === undefined ? "/api/undo" : `/api/undo?event=${event}`);
    if (item === null) {
      return null;
    }
    const others = [this.current, ...this.#ahead];
    this.#ahead = others.filter((one) => one && one.item.item_id !== item.item_id);
    this.current = held(item);
    return this.current;
  }

  /** The sign of life for all of them; whether the current one is still ours. */
  async renew() {
    const { current } = this;
    const ours = await Promise.all(
      [current, ...this.#ahead].map(async (one) => {
        const alive = (await post(`/api/leases/${one.item.token}/renew`)).until !== null;
        return [one, alive];
      }),
    );
    const lost = new Set(ours.filter(([, alive]) => !alive).map(([one]) => one));
    this.#ahead = this.#ahead.filter((one) => !lost.has(one));
    return !lost.has(current);
  }

  /** Give everything back. */
  async release() {
    await this.#coming;
    const all = [this.current, ...this.#ahead].filter(Boolean);
    await Promise.all(all.map((one) => post(`/api/leases/${one.item.token}/release`)));
  }
}
