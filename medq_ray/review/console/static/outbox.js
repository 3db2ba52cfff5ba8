// What a reader has given and the store may not have yet: sent in order while the reader goes on. What cannot be sent
// is kept and sent again, by the next page too when this one, or the browser, is killed.
//
// Kept in IndexedDB, since localStorage reaches the disk only seconds later. The store takes the same verdict under the
// same lease once: what is sent twice, by two tabs or after a reply that was lost, is one event.

import { post, Refused, reviewer, session, Unreachable } from "./api.js";

const TABLE = "unsent";
const SOONEST = 500; // ms until it is tried again, then twice as long each time
const LATEST = 10_000;

const done = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

function opened() {
  const opening = indexedDB.open("medq", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(TABLE, { keyPath: ["reviewer", "at"] });
  return done(opening);
}

export class Outbox {
  #kept = []; // {reviewer, at: ms since 1970, token, item_id, action, path, body}, the oldest first
  #late = false; // something could not be sent at once
  #delay = SOONEST;
  #timer = null;
  #sending = null;
  #database = opened();
  #keeps = false;
  #heard;

  /** heard: {stored(entry, given): given.counts says whether it holds; refused(entry, error): it never will be;
   *  changed(count, error): so many are left, and why they cannot be sent now, or null} */
  constructor(heard) {
    this.#heard = heard;
    addEventListener("online", () => this.#send());
    addEventListener("beforeunload", (event) => {
      if (this.#kept.length && (this.#late || !this.#keeps) && !session.over) {
        event.preventDefault();
      }
    });
  }

  /** What this reviewer's earlier pages left behind is sent first. */
  async open() {
    const own = IDBKeyRange.bound([reviewer], [reviewer, []]); // arrays come after all numbers
    const table = (await this.#database).transaction(TABLE).objectStore(TABLE);
    this.#kept = await done(table.getAll(own));
    this.#keeps = true;
    this.#late = this.#kept.length > 0;
  }

  /** Keep and send. */
  put(entry) {
    const last = this.#kept.at(-1)?.at ?? 0;
    const kept = { ...entry, reviewer, at: Math.max(performance.timeOrigin + performance.now(), last + 0.01) };
    this.#kept.push(kept);
    this.#write((table) => table.put(kept));
    this.#heard.changed(this.#kept.length, null);
    this.#send();
  }

  /** Send and wait for the answer; kept only when none comes. Raises Refused. */
  async ask(entry) {
    try {
      await this.settled();
      this.#heard.stored(entry, await post(entry.path, entry.body));
    } catch (error) {
      if (!(error instanceof Unreachable)) {
        throw error;
      }
      this.put(entry);
    }
  }

  /** Ends when nothing is left. Raises Unreachable when the server cannot be told now. */
  async settled() {
    while (this.#kept.length) {
      const error = await this.#send();
      if (error) {
        throw error;
      }
    }
  }

  /** Try to send everything, if nobody does yet; null, or the error that it ended with. */
  #send() {
    clearTimeout(this.#timer);
    this.#sending ??= this.#sendAll().finally(() => (this.#sending = null));
    return this.#sending;
  }

  async #sendAll() {
    while (this.#kept.length) {
      const entry = this.#kept[0];
      try {
        if (this.#late) { // its lease may be over; where nobody took the item since, it still can count
          await post(`/api/leases/${entry.token}/renew`);
        }
        const given = await post(entry.path, entry.body, true);
        this.#drop();
        this.#heard.stored(entry, given);
      } catch (error) {
        if (error instanceof Unreachable) {
          this.#late = true;
          this.#timer = setTimeout(() => this.#send(), this.#delay);
          this.#delay = Math.min(2 * this.#delay, LATEST);
          this.#heard.changed(this.#kept.length, error);
          return error;
        }
        if (!(error instanceof Refused)) {
          throw error;
        }
        this.#drop();
        this.#heard.refused(entry, error);
      }
      this.#late &&= this.#kept.length > 0;
      this.#delay = SOONEST;
      this.#heard.changed(this.#kept.length, null);
    }
    return null;
  }

  #drop() {
    const { at } = this.#kept.shift();
    this.#write((table) => table.delete([reviewer, at]));
  }

  /** In the order of the calls, which IndexedDB keeps; on the disk before anything else, and not only in its cache. */
  #write(change) {
    this.#database
      .then((base) => change(base.transaction(TABLE, "readwrite", { durability: "strict" }).objectStore(TABLE)))
      .catch(() => {}); // a browser that keeps nothing, as `open` has said, still sends
  }
}
