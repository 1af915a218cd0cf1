// Small pieces of the page. Text from anywhere becomes a text node, never markup.

export const $ = (id) => document.getElementById(id);

export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function show(place, ...children) {
  place.replaceChildren(...children.filter(Boolean));
}

export function percent(p) {
  if (p === null || p === undefined) return "–";
  if (p > 0 && p < 0.0001) return "< 0.01 %";
  return `${(100 * p).toFixed(p < 0.1 ? 2 : 1)} %`;
}

export function signed(p) {
  return p === null ? "–" : `${p < 0 ? "−" : "+"}${(100 * Math.abs(p)).toFixed(2)} %`;
}

export function number(x) {
  return x === null || x === undefined ? "–" : Number(x.toPrecision(3)).toString();
}

// A probability as a bar with its figure.
export function bar(p, kind = "main") {
  const fill = el("span", { className: `fill ${kind}` });
  fill.style.setProperty("--p", p ?? 0);
  return el("span", { className: "bar" }, el("span", { className: "track" }, fill), el("span", {}, percent(p)));
}

// A table whose cells are texts or elements; each cell also carries its column's name, for narrow pages.
export function table(head, rows, className = "") {
  const cell = (content, i) => el("td", { "data-column": head[i] }, content);
  const line = (row) => el("tr", {}, ...row.map(cell));
  return el(
    "table",
    { className },
    el("thead", {}, el("tr", {}, ...head.map((title) => el("th", { scope: "col" }, title)))),
    el("tbody", {}, ...rows.map(line)),
  );
}

const TITLES = {
  refused: "Refused, and nothing was changed",
  stopped: "Stopped",
  input: "This cannot be done",
  busy: "Too much is waiting",
  gone: "The studio is gone",
};

export function trouble(error) {
  const message = error.message.replace(/^(refused|stopped): /, "");
  return el(
    "div",
    { className: `trouble ${error.kind ?? "failed"}`, role: "alert" },
    el("strong", {}, TITLES[error.kind] ?? "This went wrong"),
    el("p", {}, message),
  );
}

// A plot that the studio drew. As an image it can run nothing and load nothing.
export function plot(svg, alt) {
  const style = "<style>svg{color:#1c2430}@media(prefers-color-scheme:dark){svg{color:#e4e6ea}}</style>";
  const own = svg.replace(/(<svg[^>]*>)/, `$1${style}`);
  return el(
    "div",
    { className: "plot" },
    el("img", { src: `data:image/svg+xml;charset=utf-8,${encodeURIComponent(own)}`, alt }),
  );
}

// Stands where an answer will be, until its turn has come.
export function waiting() {
  return el("p", { className: "hint turn" }, "Waiting for its turn …");
}

export const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

// An empty form takes its grey examples: where its main field is empty, every empty field does.
export function takeExamples(form, main) {
  if (main.value.trim()) return;
  for (const field of form.querySelectorAll("[data-example]")) {
    if (!field.value.trim()) field.value = field.placeholder;
  }
}

const running = new WeakMap();

// Runs `work(signal)` with the form's buttons saying so; its stop button ends it, and so does starting it again.
export async function working(form, out, work) {
  const [start, stop] = [form.querySelector("[type=submit]"), form.querySelector(".stop")];
  const control = new AbortController();
  running.get(form)?.abort();
  running.set(form, control);
  start.disabled = true;
  stop.hidden = false;
  stop.onclick = () => control.abort();
  let failed = null;
  try {
    await work(control.signal);
  } catch (error) {
    failed = error;
  }
  if (running.get(form) !== control) return;
  running.delete(form);
  out.querySelector(".turn")?.remove();
  if (failed) out.append(trouble(failed));
  start.disabled = false;
  stop.hidden = true;
}
