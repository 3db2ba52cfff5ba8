// The reading page: what is on the screen, and what keys and buttons do with it.

import { get, post, Refused } from "./api.js";
import { byId } from "./dom.js";
import { editForm, reasonForm } from "./edit.js";
import { showContext, showItem } from "./item.js";
import * as memory from "./memory.js";
import { Queue } from "./queue.js";
import { ActiveTime } from "./time.js";
import { PRESETS, Viewer } from "./viewer.js";

const RENEW = 60_000; // a lease lasts minutes; who has been idle for so long lets it run out
const LOOK_AGAIN = 30_000; // when nothing is left: others may give items back
const STEP = 40; // CSS pixels or greys that an arrow key moves by
const DONE = { accept: "Accepted", edit: "Edited", reject: "Rejected", skip: "Skipped", flag: "Flagged" };

const queue = new Queue();
const clock = new ActiveTime();
const viewer = new Viewer(byId("panes"), (line) => (byId("view").textContent = line));
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
    say(error.message, "bad");
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

async function show(entry) {
  close();
  byId("actions").querySelectorAll("button:not(#undo)").forEach((button) => (button.disabled = !entry));
  byId("card").hidden = !entry;
  byId("presets").hidden = entry?.item.question.modality !== "ct";
  document.body.dataset.shown = "";
  showProgress();
  if (!entry) {
    clock.stop();
    viewer.tell("Nothing is left for you now. This page looks again every half minute.");
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
  try {
    viewer.show(await pictures, item.question.text);
    byId("accept").disabled = !item.fields && item.choice === null; // not in a form that could be trained on
  } catch (error) {
    const why = error instanceof Refused ? error.message : "the image cannot be decoded";
    viewer.tell(`There is nothing to see: ${why}. Skip the item, or flag it.`);
    ["accept", "edit", "reject"].forEach((id) => (byId(id).disabled = true));
  }
  document.body.dataset.shown = item.item_id;
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

/** Send what was decided about the current item and go on to the next. */
function give(action, path, body) {
  return alone(async () => {
    const { token } = queue.current.item;
    clock.input();
    const { seconds } = clock;
    const given = await post(`/api/leases/${token}/${path}`, { seconds, ...body });
    memory.forget(token);
    if (given.counts) {
      memory.add(action, seconds);
    }
    const late = `It is kept, but does not count: ${given.why}.`;
    say(given.counts ? `${DONE[action]}. U takes it back.` : late, given.counts ? "good" : "bad");
    await show(await queue.advance());
  });
}

const verdict = (action, more = {}) => give(action, "verdict", { action, ...more });

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
    changed, save: (after) => verdict("edit", { after }), cancel: close,
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
    const entry = await queue.undo();
    memory.takeBack();
    say(entry ? "Taken back: this is the item again." : "Taken back; colleagues have the item now.", "good");
    if (entry) {
      await show(entry);
    } else {
      showProgress();
    }
  });
}

function leave() {
  return alone(async () => {
    await queue.release();
    await post("/logout");
    sessionStorage.clear();
    location.assign("/login");
  });
}

function lookAgain() {
  return alone(async () => {
    const entry = await queue.advance();
    if (entry) {
      await show(entry);
      say("There is something to read again.", "good");
    } else {
      showProgress();
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
  if (byId("help").open) {
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
  if (event.key in LEVELS) {
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
for (const [n, button] of byId("presets").querySelectorAll("button").entries()) {
  button.addEventListener("click", () => viewer.window(PRESETS[n]));
}
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
setInterval(() => queue.current || busy || lookAgain(), LOOK_AGAIN);
setInterval(async () => {
  if (queue.current && !busy && !clock.idle && !(await queue.renew().catch(() => true))) {
    say("Your time with this item was over and a colleague has it; a verdict would not count.", "bad");
  }
}, RENEW);

alone(async () => show(await queue.advance()));
