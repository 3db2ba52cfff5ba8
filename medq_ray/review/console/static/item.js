// What is written beside the image.

import { byId, element } from "./dom.js";
import { marked, named } from "./edit.js";

const MODALITIES = { ct: "CT", mri: "MRI" };
const number = (value, digits) => (value === null ? null : value.toFixed(digits));
const ROUTES = { cold_start: "first turn: all are read", expert: "models disagree or are unsure" };
const STRATEGIES = { failure_driven: "looks like a failure", random: "drawn at random" };

export function showItem(item) {
  const { question, fields } = item;
  byId("question").textContent = question.text;
  byId("stage").hidden = item.stage !== "adjudicate";
  const oracle = item.facts.simulated ? "the simulated oracle" : "the oracle";
  byId("by").textContent = `Proposed by ${item.facts.labelled_by === "self" ? "the model itself" : oracle}`;
  byId("before").hidden = !fields && item.choice !== null;
  byId("before").textContent = item.before || "(empty)";
  byId("options").replaceChildren(
    ...question.options.map((_, n) => element("li", { class: n === item.choice && "chosen" },
      named(question.options, n), n === item.choice && element("em", {}, "proposed"))),
  );
  showList("notes", item.notes, (note) => [element("b", {}, note.reviewer),
    note.colleague ? ` asks ${note.colleague}: ` : " asks: ", note.reason]);
  showList("reads", item.reads, (read) => [
    element("b", {}, read.reviewer), ` ${{ accept: "accepts", edit: "edits into", reject: "rejects" }[read.action]} `,
    fields && read.action === "edit" ? marked(item.before, read.after) : read.after, read.reason && ` (${read.reason})`,
  ]);
}

function showList(id, rows, parts) {
  byId(id).hidden = !rows.length;
  byId(id).querySelector("ul").replaceChildren(...rows.map((row) => element("li", {}, parts(row))));
}

const size = (one) => [
  one.width && `${one.width} × ${one.height} pixels`, `${one.bits} bits`,
  one.spacing && `${one.spacing.map((mm) => Number(mm.toFixed(3))).join(" × ")} mm`,
].filter(Boolean).join(", ");

/** The same of one or two images, once where they are alike. */
const both = (about, text) => [...new Set(about.map(text))].filter(Boolean).join(" / ");

export function showContext(item) {
  const { facts, failures } = item;
  const why = STRATEGIES[facts.strategy] ?? facts.strategy;
  const likeness = facts.similarity === null ? "" : `, similarity ${number(facts.similarity, 2)}`;
  const unsure = [["entropy", number(facts.entropy, 3)], ["agreement", number(facts.agreement, 2)]];
  const rows = {
    Image: [MODALITIES[facts.modality] ?? facts.modality, both(item.about, size)].filter(Boolean).join(", "),
    Source: both(item.about, (one) => one.source && `${one.source} (licence: ${one.licence})`),
    Capability: facts.capability.replace(/^\w+:/, "").replaceAll("_", " "),
    "Why selected": why + (facts.prototype === null ? "" : ` (prototype ${facts.prototype}${likeness})`),
    Route: facts.audit ? "audit: a label nobody would have read" : (ROUTES[facts.route] ?? facts.route),
    Models: unsure.filter(([, value]) => value).map((pair) => pair.join(" ")).join(", "),
    Item: `${item.item_id}, ${item.question.kind.replace("_", "/")}`,
  };
  byId("facts").replaceChildren(
    ...Object.entries(rows).filter(([, value]) => value).flatMap(([name, value]) =>
      [element("dt", {}, name), element("dd", {}, value)]),
  );
  byId("others").hidden = !failures.length;
  byId("failures").replaceChildren(
    ...failures.map((failure, n) => element("li", {},
      element("img", { src: `/api/items/${item.item_id}/failures/${n}`, alt: failure.text, loading: "lazy" }),
      element("span", { class: "asked" }, failure.text),
      element("span", {}, "right: ", element("b", {}, failure.expected)),
      element("span", {}, "said: ", element("b", { class: "wrong" }, failure.given)))),
  );
}
