// Edits: the ledger as a table, and everything that can be done to an entry.

import { get, post, stream } from "./api.js";
import { $, el, number, percent, plot, show, table, trouble, waiting, working } from "./dom.js";
import { normsInWords } from "./teach.js";

const out = $("edits-table");
const message = $("edits-message");
const panel = $("edit-panel");
const exporting = $("export-panel");
const form = $("export-form");
const exported = $("export-out");
const taking = $("import-form");
const taken = $("import-out");

export function setUp() {
  $("verify").addEventListener("click", verify);
  $("export-all").addEventListener("click", () => openExport(null));
  for (const button of document.querySelectorAll("dialog .close")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    exportEdits();
  });
  taking.addEventListener("submit", (event) => {
    event.preventDefault();
    takeIn();
  });
}

export async function load() {
  try {
    const { edits, refused } = await get("/api/edits");
    $("export-all").disabled = !edits.some((edit) => edit.state === "active");
    const left = Object.entries(refused).map(([name, why]) => trouble(Object.assign(new Error(why), { kind: "input" })));
    if (!edits.length) show(out, el("p", { className: "hint" }, "No edits yet. Teach the model something."), ...left);
    else show(out, table(["on", "name", "statement", "method", "made", "holds", "do"], edits.map(row), "ledger"), ...left);
  } catch (error) {
    show(out, trouble(error));
  }
}

function row(edit) {
  const active = edit.state === "active";
  const toggle = el("input", {
    type: "checkbox",
    checked: active,
    role: "switch",
    "aria-label": `${edit.name} in the weights`,
    onchange: (event) => change(event.target, edit.name, active ? "undo" : "redo"),
  });
  const name = el("button", { type: "button", className: "link", onclick: () => open(edit.name) }, edit.name);
  return [toggle, name, edit.statement, edit.method, when(edit.created), holds(edit), el("div", { className: "actions" }, ...actions(edit, active))];
}

function actions(edit, active) {
  const action = (name, work) => {
    const title = `${name} ${edit.name}`;
    return el("button", { type: "button", className: "plain", "aria-label": title, onclick: (event) => work(event.target) }, name);
  };
  if (active) {
    return [action("Undo", (button) => change(button, edit.name, "undo")), action("Export", () => openExport([edit.name]))];
  }
  return [
    action("Redo", (button) => change(button, edit.name, "redo")),
    action("Drop", (button) => {
      if (confirm(`Delete ${edit.name} for good?`)) change(button, edit.name, "drop");
    }),
  ];
}

function when(created) {
  const made = new Date(created);
  return el("time", { dateTime: created, title: created }, made.toLocaleString([], { dateStyle: "short", timeStyle: "short" }));
}

function holds(edit) {
  if (edit.state !== "active") return "undone";
  if (edit.holds === null) return "cannot be asked";
  return el("span", { className: edit.holds ? "good" : "bad" }, `${edit.holds ? "yes" : "no"}, ${percent(edit.probability)}`);
}

const DONE = {
  undo: "is undone: the weights are bit for bit as without it.",
  redo: "is in the weights again.",
  drop: "is deleted for good.",
};

async function change(control, name, action) {
  control.disabled = true;
  try {
    await post(`/api/edits/${encodeURIComponent(name)}/${action}`);
    show(message, el("p", {}, `${name} ${DONE[action]}`));
  } catch (error) {
    show(message, trouble(error));
  }
  await load();
}

async function open(name) {
  try {
    const edit = await get(`/api/edits/${encodeURIComponent(name)}`);
    $("edit-title").textContent = edit.name;
    const known = [
      ["state", edit.state],
      ["statement", edit.statement],
      ["question", edit.question],
      ["answer", edit.answer],
      ["about", edit.subject],
      ["method, strength", `${edit.method}, ${edit.alpha}`],
      ["made", edit.created],
      ["layers", edit.layers.join(", ")],
      ["norm of the change", number(edit.norm)],
      ["probability of the answer", edit.answer_probability_after === undefined ? null : `${percent(edit.answer_probability_before)} → ${percent(edit.answer_probability_after)}`],
      ["perplexity drift", edit.perplexity_drift === undefined ? null : percent(edit.perplexity_drift)],
    ].filter(([, value]) => value !== null && value !== undefined);
    show(
      $("edit-body"),
      el("dl", {}, ...known.flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, value)])),
      edit.plot ? plot(edit.plot, `norm of the change by layer: ${normsInWords(edit)}`) : null,
    );
    panel.showModal();
  } catch (error) {
    show(message, trouble(error));
  }
}

async function verify() {
  $("verify").disabled = true;
  show(message, el("p", {}, "Loading the base again and comparing every weight …"));
  try {
    const found = await post("/api/verify");
    const claims = [
      ["the base model is unchanged", found.base_unchanged],
      ["the weights are exactly base plus edits", found.weights_exact],
    ];
    show(message, el("ul", { className: "claims" }, ...claims.map(([claim, ok]) => el("li", { className: ok ? "good" : "bad" }, `${ok ? "yes" : "NO"}: ${claim}`))));
  } catch (error) {
    show(message, trouble(error));
  }
  $("verify").disabled = false;
}

let chosen = null;

function openExport(names) {
  chosen = names;
  $("export-title").textContent = names === null ? "Export all active edits" : `Export ${names.join(", ")}`;
  show(exported);
  exporting.showModal();
}

function exportEdits() {
  const text = (field) => field.value.trim() || null;
  const asked = {
    format: form.format.value,
    edits: chosen,
    rank: text(form.rank) === null ? null : Number(form.rank.value),
    tolerance: text(form.tolerance) === null ? null : Number(form.tolerance.value),
    dtype: text(form.dtype),
  };
  show(exported, el("p", {}, "Exporting, loading it again, and comparing …"));
  return working(form, exported, async (signal) => {
    const { report, file, address } = await stream("/api/export", asked, () => {}, signal);
    const compared = `Loaded again and compared on the statements: largest logit difference ${number(report.max_logit_error)}, same likeliest token at ${percent(report.top1_agreement)} of the positions.`;
    show(exported, el("p", {}, compared), el("p", {}, el("a", { href: address, download: file }, `Save ${file}`)));
  });
}

function takeIn() {
  const asked = {
    folder: taking.folder.value.trim(),
    kind: taking.kind.value,
    name: taking.edit_name.value.trim() || null,
    alpha: taking.alpha.value.trim() === "" ? null : Number(taking.alpha.value),
    any_base: taking.any_base.checked,
  };
  show(taken, waiting());
  return working(taking, taken, async (signal) => {
    const { imported } = await post("/api/import", asked, signal);
    show(taken, el("p", {}, `taken in: ${imported.join(", ")}`));
  });
}
