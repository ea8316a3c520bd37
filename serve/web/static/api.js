// Asking the server: analyses that stream, with one kind of error whatever goes wrong, and patience when it is busy.

const KEY = "deepcode-key";
const BUSY = new Set([429, 502, 503]);
const PATIENCE_S = 60;
const PROBLEM = "urn:deepcode-analyst:problem:";

/** What went wrong, for people in `message`; `kind` and `status` are for the page. */
export class Failure extends Error {
  constructor(message, { status = 0, kind = "", line = null, column = null } = {}) {
    super(message);
    Object.assign(this, { status, kind, line, column });
  }

  get wantsKey() {
    return this.status === 401 || this.status === 403;
  }
}

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

export function forgetKey() {
  sessionStorage.removeItem(KEY);
}

/** The decoded answer of a GET; null for one of the statuses in `absent`. */
export async function get(path, absent = []) {
  const response = await send(path, { headers: headers("application/json") });
  if (absent.includes(response.status)) return null;
  if (!response.ok) throw await failure(response);
  return response.json();
}

/** The decoded answer of a POST. */
export async function post(path, body) {
  const response = await send(path, {
    method: "POST",
    headers: { ...headers("application/json"), "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  if (!response.ok) throw await failure(response);
  return response.json();
}

/**
 * Analyse one file. Calls `on.finding` as each is confirmed, `on.unit` as each unit is done, and `on.waiting(seconds)`
 * before a busy server is asked again; returns the report.
 */
export async function analyze(request, signal, on) {
  const options = {
    method: "POST",
    headers: { ...headers("text/event-stream, application/json;q=0.5"), "Content-Type": "application/json" },
    body: JSON.stringify(request),
    signal,
  };
  let waited = 0;
  for (let attempt = 0; ; attempt++) {
    const response = await send("v1/analyze", options);
    if (BUSY.has(response.status)) {
      const seconds = Number(response.headers.get("Retry-After")) || Math.min(2 ** attempt, 8);
      if (waited + seconds > PATIENCE_S) throw await failure(response);
      on.waiting(seconds);
      await pause(seconds, signal);
      waited += seconds;
    } else if (!response.ok) {
      throw await failure(response);
    } else if (!(response.headers.get("Content-Type") ?? "").startsWith("text/event-stream")) {
      return response.json();
    } else {
      return readStream(response, on);
    }
  }
}

async function readStream(response, on) {
  let report = null;
  try {
    for await (const { event, data } of events(response.body)) {
      if (event === "finding") on.finding(JSON.parse(data));
      else if (event === "unit") on.unit(JSON.parse(data));
      else if (event === "report") report = JSON.parse(data);
      else if (event === "error") throw problem(JSON.parse(data), 0);
    }
  } catch (error) {
    if (error instanceof Failure || error.name === "AbortError") throw error;
    throw new Failure("The server broke off in the middle of its answer. Analyse again when it is back.");
  }
  if (report === null) throw new Failure("The server ended its answer before the report. Analyse again.");
  return report;
}

/** The events of a text/event-stream (https://html.spec.whatwg.org/multipage/server-sent-events.html). */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let event = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value;
      // A \r at the end may be the first half of a \r\n.
      const lines = text.split(/\r\n|\n|\r(?!$)/);
      text = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield { event, data: data.join("\n") };
          event = "";
          data = [];
          continue;
        }
        const [, field, rest] = /^([^:]*)(?:: ?)?(.*)$/s.exec(line);
        if (field === "event") event = rest;
        else if (field === "data") data.push(rest);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function send(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached. Is deepcode-serve still running?");
  }
}

async function failure(response) {
  try {
    return problem(await response.json(), response.status);
  } catch {
    return new Failure(`The server answered ${response.status} ${response.statusText}.`, { status: response.status });
  }
}

function problem(body, status) {
  const message = [body.title, body.detail].filter(Boolean).join(": ") || `The server answered ${status}.`;
  const kind = (body.type ?? "").replace(PROBLEM, "");
  return new Failure(message, { status: body.status ?? status, kind, line: body.line, column: body.column });
}

function headers(accept) {
  const key = sessionStorage.getItem(KEY);
  return key === null ? { Accept: accept } : { Accept: accept, Authorization: `Bearer ${key}` };
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
