// The items in this page's hands: the one on the screen, and the next, whose images are decoded before it is needed.

import { picture, post } from "./api.js";

/** {item, pictures: promise of its decoded images} */
function held(item) {
  const paths = Array.from({ length: item.images }, (_, n) => `/api/items/${item.item_id}/images/${n}`);
  const pictures = Promise.all(paths.map(picture));
  pictures.catch(() => {}); // whoever shows them is told; until then nobody needs to be
  return { item, pictures };
}

export class Queue {
  current = null;
  #ahead = [];
  #coming = Promise.resolve();

  /** The item after the current one, which is settled; null when nothing is left. */
  async advance() {
    this.current = null;
    await this.#coming;
    let next = this.#ahead.shift();
    if (!next) {
      const item = await post("/api/next");
      next = item && held(item);
    }
    this.current = next;
    if (next && !this.#ahead.length) {
      this.#coming = this.#prefetch(next.item.token);
    }
    return next;
  }

  async #prefetch(token) {
    try {
      const item = await post(`/api/next?after=${token}`);
      if (item) {
        this.#ahead.push(held(item));
      }
    } catch {
      // `advance` asks again, and reports what is wrong
    }
  }

  /** The item of the last verdict, before what is on the screen now; null when colleagues have it. */
  async undo() {
    const item = await post("/api/undo");
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
