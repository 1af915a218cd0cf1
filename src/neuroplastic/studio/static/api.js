// Requests to the studio. Every error is an Error with the studio's own words, and a kind:
// input, refused, stopped, busy, failed, or gone where there is no studio any more.

function failure(message, kind) {
  return Object.assign(new Error(message), { kind });
}

async function request(path, body, signal) {
  const options = { signal };
  if (body !== undefined) {
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
    options.headers = { "Content-Type": "application/json" };
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw failure("stopped", "stopped");
    throw failure("the studio does not answer; is npt studio still running?", "gone");
  }
  if (!response.ok) {
    const { error } = await response.json().catch(() => ({ error: { message: response.statusText } }));
    throw failure(error.message, error.kind ?? "failed");
  }
  return response;
}

export async function get(path) {
  return (await request(path)).json();
}

export async function post(path, body = {}, signal = undefined) {
  return (await request(path, body, signal)).json();
}

// Posts, and calls `see` with each event as it comes; returns the result.
export async function stream(path, body, see, signal) {
  const response = await request(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw failure("stopped", "stopped");
      throw failure("the studio has stopped answering; is npt studio still running?", "gone");
    }
    if (part.done) throw failure("the answer ended early; is npt studio still running?", "gone");
    text += part.value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const line of events) {
      const event = JSON.parse(line.replace(/^data: /, ""));
      if (event.type === "result") return event.result;
      if (event.type === "error") throw failure(event.message, event.kind);
      see(event);
    }
  }
}

// Calls `see` with the board as it is, and whenever it changes, while this page is in view: a browser grants a site
// few connections, and pages in the background would take them all.
export function watch(see, lost) {
  let source = null;
  function open() {
    source = new EventSource("/api/board");
    source.onmessage = (message) => see(JSON.parse(message.data));
    source.onerror = lost;
  }
  document.addEventListener("visibilitychange", () => {
    source?.close();
    source = null;
    if (!document.hidden) open();
  });
  if (!document.hidden) open();
}
