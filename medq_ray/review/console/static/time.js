// Active time of one item: what passes while the page is in front and somebody is at work.

/** Milliseconds after the last input from which nobody is taken to be at work. */
export const IDLE = 20_000;

export class ActiveTime {
  #total = 0;
  #last = null; // of the last input; null while the page is hidden or nothing is shown
  #now;

  constructor(now = () => performance.now()) {
    this.#now = now;
  }

  /** An item appears that has been worked on for so many seconds already. */
  start(seconds = 0) {
    this.#total = 1000 * seconds;
    this.#last = this.#now();
  }

  /** Somebody pressed, moved or scrolled something. */
  input() {
    if (this.#last !== null) {
      this.#total += this.#since();
      this.#last = this.#now();
    }
  }

  /** The page is hidden, or nothing is shown. */
  stop() {
    this.input();
    this.#last = null;
  }

  resume() {
    this.#last = this.#now();
  }

  get seconds() {
    return (this.#total + (this.#last === null ? 0 : this.#since())) / 1000;
  }

  get idle() {
    return this.#last === null || this.#now() - this.#last >= IDLE;
  }

  #since() {
    return Math.min(this.#now() - this.#last, IDLE);
  }
}
