// Ask: the answer as it is written, another one beside it, and the probabilities of the next token.

import { stream } from "./api.js";
import { $, bar, el, show, table, takeExamples, waiting, working } from "./dom.js";

const form = $("ask-form");
const out = $("ask-out");

export function setUp() {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
}

export function ask() {
  takeExamples(form, form.prompt);
  const asked = {
    prompt: form.prompt.value.trim(),
    mode: form.mode.value,
    beside: form.beside.value,
    max_new_tokens: form.tokens.valueAsNumber || null,
    track: form.track.value.split(",").map((word) => word.trim()).filter(Boolean),
  };
  show(out, waiting());
  let answers = [];
  return working(form, out, async (signal) => {
    const see = (event) => {
      if (event.type === "begun") show(out);
      if (event.type === "next") answers = begin(asked.prompt, event);
      if (event.type === "piece") answers[event.side].append(event.text);
    };
    await stream("/api/ask", asked, see, signal);
    for (const answer of answers) answer.classList.add("done");
  });
}

function begin(prompt, { sides, tokens }) {
  const answers = sides.map(() => el("span", { className: "new" }));
  const columns = sides.map((title, i) =>
    el(
      "article",
      { className: `answer side-${i}` },
      el("h3", {}, title),
      el("p", {}, el("span", { className: "prompt" }, prompt), answers[i]),
    ),
  );
  show(out, el("div", { className: "answers" }, ...columns), el("h3", {}, "The next token"), bars(sides, tokens));
  return answers;
}

function bars(sides, tokens) {
  const rows = tokens.map(({ token, tracked, probabilities }) => [
    el("code", { className: tracked ? "tracked" : "" }, `“${token}”`),
    ...probabilities.map((p, i) => bar(p, i ? "other" : "main")),
  ]);
  return table(["token", ...sides], rows, "bars");
}
