// Look inside: a map of the modulation's norm by layer and token, and what belongs to a chosen cell.

import { post } from "./api.js";
import { $, el, number, percent, show, table, takeExamples, trouble, waiting, working } from "./dom.js";

const form = $("look-form");
const out = $("look-out");

export function setUp() {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    look();
  });
}

function look() {
  takeExamples(form, form.text);
  const text = form.text.value.trim();
  show(out, waiting());
  return working(form, out, async (signal) => {
    const found = await post("/api/look", { text }, signal);
    const details = el("div", { "aria-live": "polite" }, el("p", { className: "hint" }, "Choose a cell: click it, or move with the arrow keys and press Enter."));
    const choose = (layer, token) => showCell(details, text, found, layer, token);
    show(out, map(found, choose), legend(found), details);
  });
}

function map({ tokens, layers, norms, listening }, choose) {
  const scale = logarithmic(norms.flat());
  const head = el("tr", {}, el("th", { scope: "col" }, "layer"), ...tokens.map((token) => el("th", { scope: "col", className: "token" }, el("span", {}, token))));
  const rows = layers.map((layer, i) =>
    el("tr", {}, el("th", { scope: "row" }, layer), ...norms[i].map((norm, t) => cell(norm, scale, `layer ${layer}, token ${t + 1} “${tokens[t]}”: norm ${number(norm)}`, () => choose(layer, t)))),
  ).reverse(); // the first layer at the bottom, as in the plots of reports
  const most = Math.max(...listening.flatMap((edit) => edit.response), 1e-9);
  const ears = listening.map((edit) =>
    el("tr", { className: "listens" }, el("th", { scope: "row", title: edit.name }, el("span", {}, edit.name)), ...edit.response.map((value, t) => shade(value / most, `${edit.name} changes ${percent(value)} of what is written at “${tokens[t]}”`))),
  );
  if (ears.length) ears.unshift(el("tr", {}, el("th", { colSpan: tokens.length + 1, className: "part", scope: "colgroup" }, "which tokens the stored edits listen to")));
  const grid = el("table", { className: "heat" }, el("caption", { className: "unseen" }, "Norm of the modulation by layer and token"), el("thead", {}, head), el("tbody", {}, ...rows), el("tbody", {}, ...ears));
  walkable(grid);
  return el("div", { className: "scroll" }, grid);
}

function cell(norm, scale, label, onclick) {
  const button = el("button", { type: "button", title: label, "aria-label": label, tabIndex: -1, onclick });
  button.style.setProperty("--v", scale(norm));
  return el("td", {}, button);
}

function shade(value, label) {
  const mark = el("span", { title: label, role: "img", "aria-label": label });
  mark.style.setProperty("--v", value);
  return el("td", {}, mark);
}

function logarithmic(values) {
  const positive = values.filter((v) => v > 0).map(Math.log);
  const [low, high] = [Math.min(...positive), Math.max(...positive)];
  return (v) => (v > 0 ? (high > low ? 0.04 + (0.96 * (Math.log(v) - low)) / (high - low) : 1) : 0);
}

function legend({ norms }) {
  const positive = norms.flat().filter((v) => v > 0);
  const range = positive.length ? `from ${number(Math.min(...positive))} to ${number(Math.max(...positive))}` : "nothing anywhere";
  return el("p", { className: "hint" }, `|dW| of the modulation: ${range}, on a logarithmic scale.`);
}

// One cell takes part in the order of the Tab key; arrows go to the others.
function walkable(grid) {
  const rows = [...grid.tBodies[0].rows].map((row) => [...row.querySelectorAll("button")]);
  const first = rows.at(-1)?.[0];
  if (first) first.tabIndex = 0;
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  grid.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    const at = rows.findIndex((row) => row.includes(event.target));
    if (!step || at < 0) return;
    event.preventDefault();
    const next = rows[at + step[0]]?.[rows[at].indexOf(event.target) + step[1]];
    if (!next) return;
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

let latest = 0;

async function showCell(place, text, found, layer, token) {
  const mine = ++latest;
  const row = found.layers.indexOf(layer);
  for (const button of out.querySelectorAll(".heat [aria-pressed]")) button.removeAttribute("aria-pressed");
  out.querySelectorAll(".heat tbody:first-of-type tr")[found.layers.length - 1 - row].querySelectorAll("button")[token].setAttribute("aria-pressed", "true");
  try {
    const cell = await post("/api/cell", { text, layer, token });
    if (mine !== latest) return; // another cell was chosen meanwhile
    const norms = Object.entries(cell.norms).map(([site, norm]) => `${site} ${number(norm)}`).join(", ");
    show(
      place,
      el("h3", {}, `Layer ${layer} at “${found.tokens[token]}”`),
      el("p", {}, `Norm of its modulation: ${norms || "none"}.`),
      cell.edits.length ? table(["edit", "cosine of the changes", "of their effects", "listens here", "would change"], cell.edits.map(edit), "wide") : el("p", { className: "hint" }, "There are no stored edits to compare it with."),
    );
  } catch (error) {
    show(place, trouble(error));
  }
}

function edit({ name, state, cosine, effect_cosine, why, listens }) {
  const heard = listens.map(({ site, keys, cosine }) => `${site}: cosine ${cosine.toFixed(3)} to the nearest of ${keys === 1 ? "1 key" : `${keys} keys`}`);
  const changed = listens.map(({ site, response }) => `${site}: ${percent(response)} of its output`);
  return [state === "active" ? name : `${name} (undone)`, why === null ? cosine.toFixed(3) : `0: ${why}`, effect_cosine?.toFixed(3) ?? "–", heard.join("; ") || "–", changed.join("; ") || "–"];
}
