// Starts the page: what model this is, the examples, and what the studio is working on.

import { get, post, watch } from "./api.js";
import * as asking from "./ask.js";
import { $, show, trouble } from "./dom.js";
import * as edits from "./edits.js";
import * as looking from "./look.js";
import * as teaching from "./teach.js";

history.replaceState(null, "", location.pathname); // the token is in a cookie now, and need not stand in the address

let changes = null;

function see(board) {
  const { working, what, done, total, waiting } = board;
  $("status").hidden = working === null;
  $("status-text").textContent = [working, what, waiting ? `${waiting} waiting` : ""].filter(Boolean).join(" · ");
  const meter = $("status-meter");
  meter.hidden = !total;
  if (total) Object.assign(meter, { max: total, value: done });
  $("lost").hidden = true;
  if (board.changes !== changes) {
    changes = board.changes;
    edits.load();
  }
}

async function start() {
  asking.setUp();
  edits.setUp();
  looking.setUp();
  try {
    const { model, examples, methods, starts } = await get("/api/state");
    teaching.setUp(methods, starts);
    for (const field of document.querySelectorAll("[data-example]")) field.placeholder = examples[field.dataset.example];
    const { preset, generator } = model.plasticity;
    const millions = `${(model.parameters / 1e6).toFixed(model.parameters < 1e7 ? 2 : 0)}M`;
    $("model").textContent = `${model.base.spec.split("/").pop()}: ${millions} parameters, ${model.plastic_layers.length} of ${model.num_layers} layers plastic, ${preset}, ${generator}`;
    document.title = `${model.base.spec.split("/").pop()} · Studio`;
  } catch (error) {
    show($("edits-table"), trouble(error));
    return;
  }
  $("status-stop").addEventListener("click", () => post("/api/stop"));
  watch(see, () => ($("lost").hidden = false));
  document.documentElement.dataset.ready = "yes";
}

start();
