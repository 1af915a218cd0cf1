// Teach: a fact goes into the weights, stage by stage, and what changed is shown.

import { post, stream } from "./api.js";
import { ask } from "./ask.js";
import { $, bar, el, lines, number, percent, plot, show, signed, table, takeExamples, trouble, waiting, working } from "./dom.js";

const form = $("teach-form");
const out = $("teach-out");

export function setUp(methods, starts) {
  form.method_.append(...methods.map((method) => el("option", { value: method }, method)));
  form.start.append(...starts.map((method) => el("option", { value: method }, method)));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    teach();
  });
  for (const choice of form.querySelectorAll("[name=kind]")) choice.addEventListener("change", chooseKind);
  chooseKind();
}

function chooseKind() {
  const asQuestion = form.kind.value === "question";
  $("teach-statement").hidden = asQuestion;
  $("teach-question").hidden = !asQuestion;
}

function filledIn() {
  const text = (field) => field.value.trim() || null;
  const asQuestion = form.kind.value === "question";
  const drift = form.max_drift.value.trim();
  return {
    statement: asQuestion ? null : text(form.statement),
    question: asQuestion ? text(form.question) : null,
    answer: text(asQuestion ? form.answer : form.ending),
    paraphrases: lines(form.paraphrases.value),
    neighbours: lines(form.neighbours.value),
    wordings: lines(form.wordings.value),
    keep: lines(form.keep.value),
    subject: text(form.subject),
    name: text(form.edit_name),
    method: text(form.method_),
    start: form.start.value,
    alpha: text(form.alpha) === null ? null : Number(form.alpha.value),
    layers: text(form.layers),
    sites: text(form.sites),
    rank: text(form.rank) === null ? null : Number(form.rank.value),
    max_drift: drift === "" ? null : Number(drift) / 100,
    require: form.require.checked,
    consistent: form.consistent.checked && !form.keep_both.checked,
    keep_both: form.keep_both.checked,
    quick: form.quick.checked,
  };
}

function teach() {
  if (form.kind.value === "statement") takeExamples(form, form.statement);
  const stages = el("ol", { className: "stages" });
  show(out, waiting());
  const see = (event) => {
    if (event.type === "begun") show(out, stages);
    showStage(stages, event);
  };
  return working(form, out, async (signal) => {
    const found = await stream("/api/teach", filledIn(), see, signal);
    show(out, ...(found.edits.length === 1 ? one(found) : [several(found.edits)]));
  });
}

function showStage(stages, event) {
  if (event.type !== "progress") return;
  if (stages.lastChild?.dataset.what !== event.what) {
    const item = el("li", {}, event.what);
    item.dataset.what = event.what;
    stages.append(item);
  }
  if (!event.total) return;
  const last = stages.lastChild;
  const meter = last.querySelector("progress") ?? last.appendChild(el("progress", { "aria-label": event.what }));
  meter.max = event.total;
  meter.value = event.done;
}

function one({ edits: [edit], paraphrases, neighbours }) {
  const answer = edit.answer;
  const beforeAndAfter = (title, prompt, before, after) => [el("span", {}, el("small", {}, title), prompt), bar(before, "other"), bar(after)];
  const rows = [
    beforeAndAfter("its own words", edit.question, edit.answer_probability_before, edit.answer_probability_after),
    beforeAndAfter(
      "after unrelated text",
      `… ${edit.question}`,
      edit.elsewhere_probability_before,
      edit.elsewhere_probability_after,
    ),
    ...paraphrases.map((p) => beforeAndAfter("paraphrase", p.prompt, p.before.probability, p.after.probability)),
    ...neighbours.map((n) => beforeAndAfter("neighbour", n.prompt, n.before.probability, n.after.probability)),
  ];
  const answers = neighbours.map((n) => [n.prompt, n.before.says.trim(), n.after.says.trim()]);
  const verdict = edit.holds
    ? `It took: after “${edit.question}” the likeliest answer is now “${answer}”.`
    : `It did not take: after “${edit.question}” something else than “${answer}” is still likelier.`;
  return [
    el("p", { className: edit.holds ? "verdict good" : "verdict bad" }, verdict),
    el(
      "p",
      { className: "buttons" },
      el("button", { type: "button", onclick: askAgain }, "Ask again"),
      el("button", { type: "button", className: "plain", onclick: (event) => undo(event.target, edit.name) }, `Undo ${edit.name}`),
    ),
    el("h3", {}, `Probability of “${answer}”`),
    table(["prompt", "before", "after"], rows, "bars wide"),
    answers.length ? el("h3", {}, "What the neighbours say") : null,
    answers.length ? table(["neighbour", "before", "after"], answers) : null,
    el("h3", {}, "What it cost"),
    facts(edit),
    edit.plot ? plot(edit.plot, `norm of the change by layer: ${normsInWords(edit)}`) : null,
  ];
}

function several(edits) {
  const rows = edits.map((e) => [e.name, e.answer, bar(e.answer_probability_before, "other"), bar(e.answer_probability_after)]);
  return el("div", {}, table(["edit", "answer", "before", "after"], rows, "bars"), facts(edits.at(-1)));
}

function facts(edit) {
  const entries = [
    ["perplexity on ordinary text (drift)", signed(edit.perplexity_drift)],
    ["mean log-probability of the statement", `${number(edit.statement_logprob_before)} → ${number(edit.statement_logprob_after)}`],
    ["method, strength", `${edit.method}, ${edit.alpha}`],
    ["about", edit.subject ?? "every token of the question"],
    ["layers changed", edit.layers.join(", ")],
    ["seconds", edit.seconds.toFixed(2)],
    ["takes the place of", (edit.replaces ?? []).join(", ") || "no other edit"],
    ["contradicts", edit.contradicts.join(", ") || "no other edit"],
  ];
  return el("dl", {}, ...entries.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

export function normsInWords(edit) {
  const layers = Object.entries(edit.relative_norm ?? {});
  return layers.map(([layer, sites]) => `layer ${layer} ${Object.entries(sites).map(([s, v]) => `${s} ${percent(v)}`).join(", ")}`).join("; ");
}

function askAgain() {
  $("ask").scrollIntoView({ block: "start" });
  ask();
}

async function undo(button, name) {
  button.disabled = true;
  try {
    await post(`/api/edits/${encodeURIComponent(name)}/undo`);
    button.replaceWith(el("span", { role: "status" }, `${name} is undone: the weights are bit for bit as before it.`));
  } catch (error) {
    button.replaceWith(trouble(error));
  }
}
