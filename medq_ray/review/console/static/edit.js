// The forms that open beside an item: its label in other words, and the reason of a rejection, skip or flag.

import { diff } from "./diff.js";
import { element } from "./dom.js";

export const REASONS = {
  reject: [
    "The question does not fit the image",
    "No option is right",
    "Cannot be decided from this image",
    "Wrong modality, or no medical image",
    "Names or other text in the image",
  ],
  skip: ["Not my field", "Needs more time", "The image does not load"],
  flag: ["Second opinion wanted", "The question is unclear", "Names or other text in the image"],
};
const TITLES = { reject: "Reject: why?", skip: "Skip: why?", flag: "Flag for a colleague: why?" };
const letter = (n) => String.fromCharCode(65 + n);

/** An option as it is read: "B. motion". */
export const named = (options, n) => `${letter(n)}. ${options[n]}`;

/** A form that calls give(reason, colleague); its keys are the numbers, and 0 for words of one's own. colleagues: a promise
 *  of names, one of whom a flag may ask; without it nobody is. */
export function reasonForm(action, give, cancel, colleagues) {
  const whom = element("select", { "aria-label": "Whose opinion" }, element("option", { value: "" }, "any colleague"));
  colleagues?.then((names) => whom.append(...names.map((name) => element("option", { value: name }, name))));
  const send = (reason) => give(reason, whom.value || null);
  const own = element("input", { type: "text", maxlength: "4000", "aria-label": "Another reason", required: true,
                                 placeholder: "Another reason" });
  const buttons = REASONS[action].map((reason, n) =>
    element("button", { type: "button", class: "row", click: () => send(reason) },
            element("kbd", {}, `${n + 1}`), reason));
  const form = element("form", { class: "sheet", "aria-label": TITLES[action] },
    element("h2", {}, TITLES[action]),
    colleagues && element("label", { class: "row" }, element("kbd", {}, "C"), whom), buttons,
    element("div", { class: "row own" }, element("kbd", {}, "0"), own, element("button", {}, "Send")),
    element("button", { type: "button", class: "quiet", click: cancel }, "Cancel ", element("kbd", {}, "Esc")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(own.value);
  });
  onKeys(form, (key) => ({ 0: own, c: colleagues && whom })[key] || buttons[Number(key) - 1]);
  return { form, first: buttons[0] };
}

/** A form that edits an item's label, starting from a draft if there is one: changed(text), save(text), cancel(). */
export function editForm(item, draft, { changed, save, cancel }) {
  const body = item.fields ? description(item, draft ?? item.before, changed) : choices(item, draft, changed);
  const form = element("form", { class: "sheet", "aria-label": "Edit" },
    body.parts,
    element("div", { class: "end" },
      element("button", { class: "go" }, "Save ", element("kbd", {}, item.fields ? "Ctrl+Enter" : "Enter")),
      element("button", { type: "button", class: "quiet", click: cancel }, "Cancel ", element("kbd", {}, "Esc"))));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    save(body.text());
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.ctrlKey) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  onKeys(form, (key) => body.keys.get(key));
  return { form, first: body.first };
}

/** Keys that stand for a control of a form, wherever in it one is, but not while one writes. */
function onKeys(form, control) {
  const writes = (element) => ["text", "textarea", "select-one"].includes(element.type);
  form.addEventListener("keydown", (event) => {
    const plain = !writes(event.target) && !event.ctrlKey && !event.altKey && !event.metaKey;
    const found = plain && control(event.key.toLowerCase());
    if (found) {
      event.preventDefault();
      found.focus();
      writes(found) || found.click();
    }
  });
}

function pick(type, name, value, checked, ...text) {
  const input = element("input", { type, name, value, checked });
  return { input, label: element("label", { class: "row" }, input, ...text) };
}

/** The options of a question with letters. */
function choices(item, draft, changed) {
  const { options } = item.question;
  const start = draft ?? (item.choice === null ? undefined : letter(item.choice));
  const rows = options.map((option, n) =>
    pick("radio", "option", letter(n), letter(n) === start, element("kbd", {}, `${n + 1}`), named(options, n)));
  const shown = element("p", { class: "diff", "aria-label": "What changed" });
  const text = () => rows.find(({ input }) => input.checked)?.input.value ?? "";
  const update = () => {
    const before = item.choice === null ? item.before : options[item.choice];
    const now = rows.findIndex(({ input }) => input.checked);
    shown.replaceChildren(...(now < 0 ? [] : marked(before, options[now])));
  };
  rows.forEach(({ input }) => input.addEventListener("change", () => {
    update();
    changed(text());
  }));
  update();
  const group = element("fieldset", {}, element("legend", {}, "Right answer"), rows.map(({ label }) => label));
  const keys = new Map(rows.map(({ input }, n) => [`${n + 1}`, input]));
  const first = rows.find(({ input }) => input.checked)?.input ?? rows[0].input;
  return { parts: [group, shown], text, keys, first };
}

/** A description: fields that write its sentences, and the text itself, which may say it in other words. */
function description(item, start, changed) {
  const { fields } = item;
  const found = fields.found ?? { degradations: [], severity: "", grade: "" };
  const boxes = Object.entries(fields.names).map(([name, words], n) =>
    pick("checkbox", "degradation", name, found.degradations.includes(name), element("kbd", {}, `${n + 1}`), words));
  const levels = (name, values, now) => values.map((value) =>
    pick("radio", name, value, value === now, element("kbd", {}, value[0].toUpperCase()), value));
  const severities = levels("severity", fields.severities, found.severity);
  const grades = levels("grade", Object.keys(fields.closings), found.grade);
  const area = element("textarea", { rows: "3", maxlength: "4000", "aria-label": "Description in words" });
  const shown = element("p", { class: "diff", "aria-label": "What changed" });
  const chosen = (rows) => rows.filter(({ input }) => input.checked).map(({ input }) => input.value);
  const choose = (rows, value) => rows.forEach(({ input }) => (input.checked = input.value === value));
  area.value = start;

  const update = () => shown.replaceChildren(...marked(item.before, area.value));
  const write = (changedRows) => {
    const level = chosen(severities)[0];
    if (changedRows === severities && level === "none") {
      choose(boxes, null);
    } else if (!chosen(boxes).length) {
      choose(severities, "none");
    } else if (!level || level === "none") {
      choose(severities, fields.severities[1]);
    }
    const severity = chosen(severities)[0];
    if (changedRows !== grades) { // each severity has a grade that mostly goes with it, in the same order
      choose(grades, Object.keys(fields.closings)[fields.severities.indexOf(severity)]);
    }
    const findings = chosen(boxes).map((name) => fields.findings[name][severity]);
    const sentences = findings.length ? findings : [fields.clean];
    area.value = [fields.opening, ...sentences, fields.closings[chosen(grades)[0]]].join(" ");
    update();
    changed(area.value);
  };
  for (const rows of [boxes, severities, grades]) {
    rows.forEach(({ input }) => input.addEventListener("change", () => write(rows)));
  }
  area.addEventListener("input", () => {
    update();
    changed(area.value);
  });
  update();
  const set = (title, rows, how) =>
    element("fieldset", { class: how }, element("legend", {}, title), rows.map(({ label }) => label));
  const all = [...severities, ...grades].map(({ input }) => [input.value[0], input]);
  const keys = new Map([...boxes.map(({ input }, n) => [`${n + 1}`, input]), ...all, ["t", area]]);
  const words = element("label", { class: "words" }, element("span", {}, element("kbd", {}, "T"), " In words"), area);
  const parts = [shown, set("Degradations", boxes, "two"), set("Severity", severities, "three"),
                 set("Overall quality", grades, "three"), words];
  return { parts, text: () => area.value, keys, first: boxes[0].input };
}

const TAGS = { same: "span", gone: "del", new: "ins" };

/** A diff as elements. */
export function marked(before, after) {
  return diff(before, after).flatMap(({ kind, text }) => [element(TAGS[kind], {}, text), " "]);
}
