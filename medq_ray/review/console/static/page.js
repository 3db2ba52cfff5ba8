// The reading page: what is on the screen, and what keys and buttons do with it.

import { get, post, Refused, Unreachable } from "./api.js";
import { byId, element } from "./dom.js";
import { editForm, reasonForm } from "./edit.js";
import { showContext, showItem } from "./item.js";
import * as memory from "./memory.js";
import { Outbox } from "./outbox.js";
import { Queue } from "./queue.js";
import { ActiveTime } from "./time.js";
import { PRESETS, Viewer } from "./viewer.js";

const RENEW = 60_000; // a lease lasts minutes; who has been idle for so long lets it run out
const LOOK_AGAIN = 30_000; // when nothing is left: others may give items back
const STEP = 40; // CSS pixels or greys that an arrow key moves by
const DONE = { accept: "Accepted", edit: "Edited", reject: "Rejected", skip: "Skipped", flag: "Flagged" };

const outbox = new Outbox({ stored, refused, changed });
const queue = new Queue(() => outbox.settled(), (item) => (document.body.dataset.ahead = item.item_id));
const clock = new ActiveTime();
const viewer = new Viewer(
  byId("panes"), (line) => (byId("view").textContent = line), (line) => (byId("point").textContent = line));
let busy = false;
let sheet = null; // the open form
let progressTurn = 0;

function say(line, kind = "") {
  byId("status").textContent = line;
  byId("status").className = kind;
}

/** Do one thing at a time; what is refused is told, and leaves everything as it is. */
async function alone(act) {
  if (busy) {
    return;
  }
  busy = true;
  document.body.classList.add("busy");
  try {
    await act();
  } catch (error) {
    if (!(error instanceof Refused)) {
      throw error;
    }
    say(error instanceof Unreachable ? `Not now: ${error.message}.` : error.message, "bad");
  } finally {
    busy = false;
    document.body.classList.remove("busy");
  }
}

function keepTime() {
  if (queue.current) {
    memory.remember(queue.current.item.token, { seconds: clock.seconds });
  }
}

const NOTHING = "Nothing is left for you now. This page looks again every half minute.";

/** Show an item, or a line in its place. Keys do nothing until its images are on the screen. */
async function show(entry, otherwise = NOTHING) {
  close();
  byId("actions").querySelectorAll("button:not(#undo)").forEach((button) => (button.disabled = !entry));
  byId("card").hidden = !entry;
  byId("presets").hidden = true;
  document.body.dataset.shown = "";
  if (!entry) {
    clock.stop();
    viewer.tell(otherwise);
    return;
  }
  const { item, pictures } = entry;
  showItem(item);
  showContext(item);
  byId("scroll").scrollTop = 0;
  byId("question").focus({ preventScroll: true });
  clock.start(memory.recall(item.token).seconds);
  if (document.hidden) {
    clock.stop();
  }
  if (!entry.ready) {
    viewer.tell("The image is on its way."); // never the last one beside this question
  }
  try {
    viewer.show(await pictures, item.question.text);
    byId("presets").hidden = !viewer.hounsfield;
    byId("accept").disabled = !item.fields && item.choice === null; // not in a form that could be trained on
  } catch (error) {
    const why = error instanceof Refused ? error.message : "the image cannot be decoded";
    viewer.tell(`There is nothing to see: ${why}. Skip the item, or flag it.`);
    ["accept", "edit", "reject"].forEach((id) => (byId(id).disabled = true));
  }
  document.body.dataset.shown = item.item_id;
  queue.prefetch();
}

/** Show the item that `next` fetches, by default the one after this. */
async function advance(next = () => queue.advance()) {
  try {
    await show(await next());
  } catch (error) {
    if (!(error instanceof Refused)) {
      throw error;
    }
    await show(null, `There is no next item: ${error.message}. This page goes on by itself when it can.`);
  }
}

async function showProgress() {
  const turn = ++progressTurn;
  const found = await get("/api/progress").catch(() => null);
  if (!found || turn !== progressTurn) {
    return; // the next verdict asks again, and a later answer is never overtaken by an earlier one
  }
  const left = found.unread + found.second;
  byId("done").max = Math.max(1, found.items);
  byId("done").value = found.done;
  const numbers = [`${found.done} of ${found.items} done`, `${left} to read`];
  if (found.adjudicate) {
    numbers.push(`${found.adjudicate} to adjudicate`);
  }
  byId("left").textContent = numbers.join(" · ");
  const pace = memory.pace();
  byId("pace").textContent = pace ? `${Math.round(pace.perHour)} an hour · median ${pace.median.toFixed(1)} s` : "";
}

/** Give a verdict, skip or flag and go on at once; inWords: only the server can tell whether training could read it, so
 *  its answer is waited for and the form stays open if it says no. */
function give(action, path, body, inWords = false) {
  return alone(async () => {
    const { token, item_id, taken_at } = queue.current.item;
    clock.input();
    const { seconds } = clock;
    const entry = { token, item_id, action, path: `/api/leases/${token}/${path}`, body: { seconds, taken_at, ...body } };
    await (inWords ? outbox.ask(entry) : outbox.put(entry));
    say(`${DONE[action]}. U takes it back.`, "good");
    await advance();
  });
}

const verdict = (action, more = {}) => give(action, "verdict", { action, ...more });

function stored({ token, item_id, action, body }, given) {
  memory.forget(token);
  if (given.counts) {
    memory.add(given.event_id, action, body.seconds);
  } else {
    notice(`Item ${item_id}: what you gave is kept, but does not count: ${given.why}.`);
  }
  showProgress();
  queue.prefetch();
}

function refused({ item_id, action }, error) {
  const back = element("button", { type: "button", click: () => backTo(item_id) }, `Back to item ${item_id}`);
  notice(`Item ${item_id} was not ${DONE[action].toLowerCase()}: ${error.message}.`, back);
}

/** What waits to be stored, and why. */
function changed(count, error) {
  document.body.dataset.unsent = count;
  if (count && !error) {
    return; // mostly for a moment only
  }
  const many = count === 1 ? "1 item is" : `${count} items are`;
  byId("unsent").textContent = count ? `${many} kept here and not stored yet: ${error.message}. Trying again.` : "";
  if (!count) {
    lookIfIdle();
  }
}

/** Something that stays until it is read. */
function notice(line, ...buttons) {
  const close = element("button", { type: "button", class: "quiet", click: () => row.remove() }, "Close");
  const row = element("li", {}, element("p", {}, line), buttons, close);
  byId("notices").append(row);
}

function backTo(item_id) {
  return alone(async () => {
    keepTime();
    await advance(() => queue.restart());
    if (queue.current?.item.item_id !== item_id) {
      say(`Item ${item_id} is not in your hands any more.`, "bad");
    }
  });
}

function open(made) {
  close();
  sheet = made.form;
  byId("sheet").replaceChildren(sheet);
  byId("answer").hidden = true;
  made.first.focus();
}

function close() {
  if (sheet) {
    byId("sheet").replaceChildren();
    byId("answer").hidden = false;
    sheet = null;
    byId("question").focus({ preventScroll: true });
  }
}

function edit() {
  const { item } = queue.current;
  const changed = (draft) => memory.remember(item.token, { draft });
  open(editForm(item, memory.recall(item.token).draft, {
    changed, save: (after) => give("edit", "verdict", { action: "edit", after }, Boolean(item.fields)), cancel: close,
  }));
}

function ask(action) {
  const send = (reason) => (action === "reject" ? verdict("reject", { reason }) : give(action, action, { reason }));
  open(reasonForm(action, send, close));
}

/** Ask any colleague, or one by name; of an adjudication leads only. */
function flag() {
  const { stage } = queue.current.item;
  const able = ({ role }) => stage === "read" || role !== "reviewer";
  const names = get("/api/colleagues").then((all) => all.filter(able).map(({ name }) => name), () => []);
  open(reasonForm("flag", (reason, colleague) => give("flag", "flag", { reason, colleague }), close, names));
}

function undo() {
  return alone(async () => {
    keepTime();
    const entry = await queue.undo(memory.last);
    memory.takeBack();
    say(entry ? "Taken back: this is the item again." : "Taken back; colleagues have the item now.", "good");
    if (entry) {
      await show(entry);
    }
    showProgress();
  });
}

function leave() {
  return alone(async () => {
    await outbox.settled();
    await queue.release();
    await post("/logout");
    sessionStorage.clear();
    location.assign("/login");
  });
}

function lookAgain() {
  return alone(async () => {
    await advance();
    showProgress();
    if (queue.current) {
      say("There is something to read again.", "good");
    }
  });
}

function toggleWindowing() {
  viewer.windowing = !viewer.windowing;
  byId("windowing").setAttribute("aria-pressed", viewer.windowing);
}

const LEVELS = { ArrowUp: [10, 0], ArrowDown: [-10, 0], ArrowLeft: [0, -10], ArrowRight: [0, 10] };
const PANS = { ArrowUp: [0, STEP], ArrowDown: [0, -STEP], ArrowLeft: [STEP, 0], ArrowRight: [-STEP, 0] };
const ACTIONS = {
  accept: () => verdict("accept"), edit, undo,
  reject: () => ask("reject"), skip: () => ask("skip"), flag,
  closer: () => viewer.zoom(1.25), farther: () => viewer.zoom(0.8), reset: () => viewer.reset(),
  invert: () => viewer.invert(), windowing: toggleWindowing,
  keys: () => byId("help").showModal(), leave,
};
const KEYS = {
  a: "accept", e: "edit", r: "reject", s: "skip", f: "flag", u: "undo", z: "undo",
  "+": "closer", "=": "closer", "-": "farther", 0: "reset", i: "invert", w: "windowing", "?": "keys",
};

function pressed(event) {
  if (byId("help").open || event.defaultPrevented) { // a key of a form, which may be gone by now
    return;
  }
  if (event.key === "Escape") {
    close();
    return;
  }
  if (sheet || event.ctrlKey || event.metaKey || event.altKey || event.repeat) {
    return;
  }
  const preset = !byId("presets").hidden && PRESETS[Number(event.key) - 1];
  if (event.key in LEVELS && event.target.id !== "scroll") {
    event.preventDefault();
    if (event.shiftKey) {
      viewer.level(...LEVELS[event.key]);
    } else {
      viewer.pan(...PANS[event.key]);
    }
  } else if (preset) {
    viewer.window(preset);
  } else if (event.key.toLowerCase() in KEYS) {
    event.preventDefault();
    byId(KEYS[event.key.toLowerCase()]).click(); // which does nothing where the button is disabled
  }
}

for (const [id, act] of Object.entries(ACTIONS)) {
  byId(id).addEventListener("click", act);
}
byId("presets").append(...PRESETS.map((preset, n) => {
  const title = `Level ${preset.center}, window ${preset.width} HU`;
  const key = `${n + 1}`;
  return element("button", { type: "button", title, "aria-keyshortcuts": key, click: () => viewer.window(preset) },
    `${preset.name} `, element("kbd", {}, key));
}));
document.addEventListener("keydown", pressed);
for (const kind of ["keydown", "pointerdown", "pointermove", "wheel"]) {
  document.addEventListener(kind, () => clock.input(), { capture: true, passive: true });
}
document.addEventListener("visibilitychange", () => {
  if (document.hidden || !queue.current) {
    clock.stop();
  } else {
    clock.resume();
  }
});
addEventListener("pagehide", keepTime);
const lookIfIdle = () => queue.current || busy || lookAgain();
setInterval(lookIfIdle, LOOK_AGAIN);
addEventListener("online", lookIfIdle);
setInterval(async () => {
  if (queue.current && !busy && !clock.idle && !(await queue.renew().catch(() => true))) {
    say("Your time with this item was over and a colleague has it; a verdict would not count.", "bad");
  }
}, RENEW);

alone(async () => {
  await outbox.open().catch(() => notice("This browser keeps nothing: stay on the page while something is not stored."));
  showProgress();
  await advance();
});
